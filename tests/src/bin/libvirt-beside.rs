//! `libvirt-beside LINK MEMORY_MIB LOAD REPEATS`: libvirt's migrations by hikyaku, beside libvirt alone over the same link. `cargo lab libvirt` runs it.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use hikyaku_lab::backed::Backed;
use hikyaku_lab::guest::{Load, Timeline};
use hikyaku_lab::link::Profile;
use hikyaku_lab::verdict::{Bound, Repeats, Verdict};
use hikyaku_tests::command::Running;
use hikyaku_tests::virt::{GUEST, Plan, Virt};

const MOVE: Duration = Duration::from_secs(240);
/// More than two guests and two daemons have.
const BACKED_BYTES: usize = 4 << 30;
/// From a daemon's start until it has filled its link.
const WARM: Duration = Duration::from_secs(20);
/// Of the best of the others' time.
const TOTAL_MOST: f64 = 0.75;
/// Over a round trip and a half.
const GAP_MORE_MS: f64 = 120.0;

/// What libvirt can do without us, by virsh's options.
const ALONE: [&[&str]; 3] = [
    &[],
    &["--parallel", "--parallel-connections", "8", "--compressed", "--comp-methods", "zstd"],
    &["--tls"],
];

#[derive(Default)]
struct Seen {
    total_s: Repeats,
    gap_ms: Repeats,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [link, memory, load, repeats] = words.as_slice() else { return usage() };
    let (Ok(memory_mib), Ok(repeats)) = (memory.parse::<u32>(), repeats.parse::<u32>()) else {
        return usage();
    };
    let (Some(profile), Ok(mut load)) = (Profile::named(link), Load::preset(load)) else { return usage() };
    let Some(plan) = Plan::here(link.clone().leak()) else { return ExitCode::FAILURE };
    load.sweep_pages_per_s = plan.load.sweep_pages_per_s;
    let plan = Plan { memory_mib, load, ..plan };
    let _backed = Backed::hold(BACKED_BYTES);
    let mut alone: [Seen; 3] = Default::default();
    let mut ours = Seen::default();
    // In turns: what the machine does meanwhile is nobody's alone.
    for _ in 0..repeats {
        for (options, seen) in ALONE.iter().zip(&mut alone) {
            measure(&plan, &name(options), seen, |virt| by_itself(virt, options));
        }
        measure(&plan, OURS, &mut ours, |virt| virt.hikyaku_beside(&["virsh-migrate", GUEST, "--to", "b"]));
    }
    println!("\n{link}, {memory_mib} MiB: median (least-most)");
    for (name, seen) in
        ALONE.iter().map(|options| name(options)).zip(&alone).chain([(OURS.to_owned(), &ours)])
    {
        println!("  {name:72} total {:20} s, gap {} ms", seen.total_s.show(1.0, 2), seen.gap_ms.show(1.0, 0));
    }
    let best = alone.iter().map(|seen| seen.total_s.median()).fold(f64::INFINITY, f64::min);
    let gap_most = 1.5 * profile.rtt.as_secs_f64() * 1e3 + GAP_MORE_MS;
    let verdicts = [
        Verdict::new(
            "total, of the best of libvirt alone",
            ours.total_s.median() / best,
            Bound::AtMost(TOTAL_MOST),
            "",
        ),
        Verdict::new("gap", ours.gap_ms.median(), Bound::AtMost(gap_most), " ms"),
    ];
    println!();
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    if verdicts.iter().all(Verdict::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const OURS: &str = "hikyaku virsh-migrate";

fn usage() -> ExitCode {
    eprintln!("usage: libvirt-beside LINK MEMORY_MIB LOAD REPEATS");
    ExitCode::from(2)
}

fn name(options: &[&str]) -> String {
    ["virsh migrate --live"].iter().chain(options).copied().collect::<Vec<_>>().join(" ")
}

fn measure(plan: &Plan, what: &str, seen: &mut Seen, begin: impl FnOnce(&mut Virt) -> Running) {
    let mut virt = Virt::new(plan);
    make_certificates(&virt);
    wait_warm(&virt);
    let began = Instant::now();
    let command = begin(&mut virt);
    let there = virt.console_there();
    command.wait(MOVE).expect_code(0);
    let total = began.elapsed();
    virt.check_moved(&there, false);
    let timeline = Timeline::merge(&[&virt.source, &there]);
    let gap = timeline.longest_gap(began..Instant::now()).length;
    println!("  {what:72} total {:6.2} s, gap {:4} ms", total.as_secs_f64(), gap.as_millis());
    seen.total_s.add(total.as_secs_f64());
    seen.gap_ms.add(gap.as_secs_f64() * 1e3);
}

/// The daemons have been up before, as they are where guests are moved.
fn wait_warm(virt: &Virt) {
    let deadline = Instant::now() + WARM;
    while !virt.pair.a.log().contains("the link is warm") {
        assert!(Instant::now() < deadline, "the link is not warm: {}", virt.pair.a.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn by_itself(virt: &mut Virt, options: &[&str]) -> Running {
    let ip = virt.network.host("b").ip4();
    let (to, by) = (format!("qemu+tcp://{ip}/system"), format!("tcp://{ip}:49152"));
    let words = [&["migrate", "--live", GUEST, &to, "--migrateuri", &by], options].concat();
    virt.a.virsh_beside(virt.network.host("a"), &words)
}

fn openssl(within: &Path, words: &str) {
    let output =
        Command::new("openssl").args(words.split(' ')).current_dir(within).output().expect("openssl");
    assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// As libvirt's own documentation has it: an authority, and a certificate of the destination, where libvirt looks for them by itself. One that is
/// begun anew would leave the guest's QEMU to PID 1 to bury, for which libvirt waits.
fn make_certificates(virt: &Virt) {
    let files = tempfile::tempdir().expect("a directory");
    let at = |name: &str| files.path().join(name);
    let ip = virt.network.host("b").ip4();
    fs::write(at("ca"), "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n")
        .expect("a file");
    let its = format!(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:{ip}\n"
    );
    fs::write(at("its"), its).expect("a file");
    openssl(
        files.path(),
        "req -new -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca.csr -subj /CN=authority",
    );
    openssl(files.path(), "x509 -req -in ca.csr -signkey ca-key.pem -days 2 -extfile ca -out ca-cert.pem");
    openssl(
        files.path(),
        &format!("req -new -newkey rsa:2048 -nodes -keyout server-key.pem -out its.csr -subj /CN={ip}"),
    );
    openssl(
        files.path(),
        "x509 -req -in its.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile its -out server-cert.pem",
    );
    for virt_host in [&virt.a, &virt.b] {
        let to = virt_host.inside("/etc/pki/qemu");
        fs::create_dir_all(&to).expect("a directory");
        for (from, name) in [
            ("ca-cert.pem", "ca-cert.pem"),
            ("server-cert.pem", "server-cert.pem"),
            ("server-key.pem", "server-key.pem"),
            ("server-cert.pem", "client-cert.pem"),
            ("server-key.pem", "client-key.pem"),
        ] {
            fs::copy(at(from), to.join(name)).expect("a copy");
        }
    }
}
