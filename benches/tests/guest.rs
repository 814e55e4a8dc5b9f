//! The test guest under a real QEMU: it boots, keeps time, does what its load says, and notices damage.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use hikyaku_lab::guest::load::Corruption;
use hikyaku_lab::guest::ram::{Difference, RamError};
use hikyaku_lab::guest::{GuestSpec, Kvm, Load, Qemu, RamImage, Timeline};
use hikyaku_lab::steady::asserted;
use serde_json::json;

const READY: Duration = Duration::from_secs(30);
const SWEPT: Duration = Duration::from_secs(30);
/// For a KVM that emulates every instruction, on a busy machine.
const KVM_READY: Duration = Duration::from_secs(90);
const KVM_SWEPT: Duration = Duration::from_secs(120);

/// Two cores are soon full: what measures time has the machine for itself.
static MACHINE: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

fn load(preset: &str) -> Load {
    Load::preset(preset).expect("a preset of the table")
}

fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// Is there KVM to test with? A machine without has nothing to test; a user who may not is a skip.
fn kvm_is_here() -> bool {
    match Kvm::probe() {
        Kvm::Usable => true,
        Kvm::Absent => {
            eprintln!("not applicable: no KVM on this machine");
            false
        }
        Kvm::Refused(error) => {
            assert_ne!(std::env::var("HIKYAKU_TESTS").as_deref(), Ok("all"), "/dev/kvm: {error}");
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            eprintln!("skipped: {test} needs the right to use /dev/kvm ({error})");
            if let Some(log) = std::env::var_os("HIKYAKU_SKIP_LOG") {
                let mut log =
                    std::fs::OpenOptions::new().append(true).create(true).open(log).expect("a log of skips");
                writeln!(log, "{test}: needs the right to use /dev/kvm").expect("a log of skips");
            }
            false
        }
    }
}

/// A guest that also a KVM without hardware has filled and checked within seconds.
fn small_kvm_guest() -> GuestSpec {
    let mut load = load("idle");
    (load.dup_permille, load.text_permille, load.random_permille) = (10, 20, 20);
    load.sweep_pages_per_s = Some(20_000);
    GuestSpec::new(16, load).accel("kvm")
}

#[test]
fn it_boots_on_both_boards_and_beats_every_10_ms() {
    let _alone = alone();
    for machine in ["q35", "pc"] {
        let qemu = Qemu::start(&GuestSpec::new(128, load("idle")).machine(machine)).unwrap();
        let ready = qemu.wait_ready(READY).unwrap();
        let boot = ready.at - qemu.started();
        println!("{machine}: ready after {boot:?}, filled in {} ms", ready.fill_ms);
        assert!(boot < Duration::from_secs(5), "{machine}: {boot:?}");
        sleep(2.0);
        let beats = qemu.console().snapshot().heartbeats;
        let mut spacing_us: Vec<u128> =
            beats.windows(2).map(|pair| (pair[1].at - pair[0].at).as_micros()).collect();
        spacing_us.sort_unstable();
        let median_us = spacing_us[spacing_us.len() / 2];
        println!(
            "{machine}: {} beats, median {median_us} µs, longest {} µs",
            beats.len(),
            spacing_us.last().unwrap()
        );
        assert!((9_000..=11_000).contains(&median_us), "{machine}: {median_us} µs");
        assert!(beats.windows(2).all(|pair| pair[1].number == pair[0].number + 1));
        assert_eq!(qemu.console().bad(), 0);
    }
}

#[test]
fn half_a_gibibyte_is_filled_within_three_seconds() {
    let _alone = alone();
    // The best of a few: what the guest can do, not what else the machine is doing.
    let fill_ms =
        || Qemu::start(&GuestSpec::new(512, load("oltp"))).unwrap().wait_ready(READY).unwrap().fill_ms;
    let in_time = (0..5).any(|_| {
        let fill_ms = fill_ms();
        println!("512 MiB filled in {fill_ms} ms");
        fill_ms < 3000
    });
    assert!(in_time);
}

#[test]
fn memory_has_the_shares_that_were_asked_for() {
    let _guard = beside_others();
    for name in Load::NAMES {
        let load = load(name);
        let qemu = Qemu::start(&GuestSpec::new(256, load.clone())).unwrap();
        let ready = qemu.wait_ready(READY).unwrap();
        assert_eq!(ready.zero + ready.dup + ready.text + ready.random, ready.pages);
        // The firmware and the guest's own tables take a little.
        assert!(ready.pages > 250 * 256 && ready.pages < 256 * 256, "{name}: {ready:?}");
        for (kind, pages, permille) in [
            ("dup", ready.dup, load.dup_permille),
            ("text", ready.text, load.text_permille),
            ("random", ready.random, load.random_permille),
        ] {
            let share = pages as f64 / ready.pages as f64;
            assert!((share - f64::from(permille) / 1e3).abs() < 0.004, "{name}: {kind} {share:.4}");
        }
        assert_eq!(ready.set, u64::from(load.set_pages).min(ready.pages - ready.zero), "{name}");
    }
}

#[test]
fn every_load_writes_at_its_rate_and_finds_nothing_bad() {
    let _alone = alone();
    for name in ["idle", "seq@100", "rand@100", "hot@100", "oltp", "oltp@20", "build@20", "jbb", "noise"] {
        let load = load(name);
        let qemu = Qemu::start(&GuestSpec::new(256, load.clone())).unwrap();
        qemu.wait_ready(READY).unwrap();
        asserted(1, name, || {
            // Whole periods of a load that comes in bursts.
            sleep(2.2);
            let rate = qemu.console().writes_per_s(Qemu::last(Duration::from_secs(2)));
            let asked = f64::from(load.rate_pages_per_s);
            println!("{name}: {rate:.0} pages/s of {asked:.0}");
            assert!(rate > 0.85 * asked && rate < 1.1 * asked, "{rate:.0} pages/s, asked for {asked:.0}");
        });
        assert_eq!(qemu.console().bad(), 0, "{name}: {:?}", qemu.console().reports());
    }
}

#[test]
fn all_of_memory_is_checked_again_and_again() {
    let _guard = beside_others();
    let mut load = load("rand");
    load.sweep_pages_per_s = Some(20_000);
    let qemu = Qemu::start(&GuestSpec::new(128, load)).unwrap();
    qemu.wait_ready(READY).unwrap();
    assert_eq!(qemu.wait_swept(SWEPT).unwrap().bad, 0);
}

#[test]
fn small_and_large_memory_is_used_up_to_the_last_page() {
    let _guard = beside_others();
    // On q35, 3 GiB reach above 4 GiB.
    for (machine, memory_mib) in [("q35", 64), ("pc", 64), ("q35", 3072)] {
        let mut load = load("idle");
        // Little is filled, but all of it is looked at.
        (load.dup_permille, load.text_permille, load.random_permille) = (10, 20, 20);
        load.set_pages = 100;
        load.sweep_pages_per_s = Some(400_000);
        let qemu = Qemu::start(&GuestSpec::new(memory_mib, load).machine(machine)).unwrap();
        let ready = qemu.wait_ready(READY).unwrap();
        let share = ready.pages as f64 / (f64::from(memory_mib) * 256.0);
        assert!(share > 0.97, "{machine} {memory_mib}: {ready:?}");
        assert_eq!(qemu.wait_swept(SWEPT * 2).unwrap().bad, 0);
    }
}

#[test]
fn each_kind_of_damage_is_noticed() {
    let _guard = beside_others();
    for damage in Corruption::ALL {
        let mut load = load("idle").with_corruption(damage, 200);
        load.sweep_pages_per_s = Some(20_000);
        let qemu = Qemu::start(&GuestSpec::new(64, load)).unwrap();
        qemu.wait_ready(READY).unwrap();
        let beat = qemu.wait_heartbeat(SWEPT, "bad pages", |beat| beat.bad >= damage.pages());
        assert_eq!(beat.unwrap().bad, damage.pages(), "{damage:?}");
        // Counted once, however often it is met again.
        let later = qemu.wait_swept(SWEPT).unwrap();
        assert_eq!(later.bad, damage.pages(), "{damage:?}");
        assert_eq!(qemu.console().reports().len() as u64, damage.pages(), "{:?}", qemu.console().reports());
    }
}

#[test]
fn a_byte_changed_from_outside_is_noticed_and_named() {
    let _guard = beside_others();
    let mut qemu = Qemu::start(&GuestSpec::new(64, load("idle"))).unwrap();
    qemu.wait_ready(READY).unwrap();
    let address = 0x200_0800;
    qemu.stop().unwrap();
    let before = RamImage::read(&mut qemu).unwrap();
    qemu.poke(address, b"X").unwrap();
    let after = RamImage::read(&mut qemu).unwrap();
    assert_eq!(before.compare(&after), [Difference::Page { block: "pc.ram".into(), page: address / 4096 }]);
    qemu.cont().unwrap();
    let beat = qemu.wait_heartbeat(SWEPT, "a bad page", |beat| beat.bad > 0).unwrap();
    assert_eq!(beat.bad, 1);
    let reports = qemu.console().reports();
    assert!(reports[0].contains(&format!("address={:#x} ", address & !0xfff)), "{reports:?}");
}

#[test]
fn memory_of_a_running_guest_is_not_read() {
    let _guard = beside_others();
    let mut qemu = Qemu::start(&GuestSpec::new(64, load("idle"))).unwrap();
    assert!(matches!(RamImage::read(&mut qemu), Err(RamError::NotStopped(_))));
}

#[test]
fn it_survives_being_saved_and_restored() {
    let _alone = alone();
    for machine in ["q35", "pc"] {
        let mut load = load("rand@100");
        load.sweep_pages_per_s = Some(20_000);
        let spec = GuestSpec::new(128, load).machine(machine);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        let mut first = Qemu::start(&spec).unwrap();
        first.wait_ready(READY).unwrap();
        sleep(0.5);
        first.stop().unwrap();
        first.migrate(&format!("exec:cat > {}", file.display()), READY).unwrap();
        let saved = RamImage::read(&mut first).unwrap();

        let uri = format!("exec:cat {}", file.display());
        let mut second = Qemu::await_migration_with(&spec, &uri, |program| Command::new(program)).unwrap();
        second.wait_migrated(READY).unwrap();
        assert_eq!(second.status().unwrap(), "paused");
        let restored = RamImage::read(&mut second).unwrap();
        let names: Vec<_> = saved.blocks.iter().map(|block| (&block.name, block.bytes)).collect();
        println!("{machine}: {} pages in {names:?}", saved.pages());
        assert!(saved.blocks.iter().any(|block| block.name.contains("vga")), "{names:?}");
        assert_eq!(saved.compare(&restored), [], "{machine}");

        second.cont().unwrap();
        assert_eq!(second.wait_swept(SWEPT).unwrap().bad, 0, "{:?}", second.console().reports());
        let timeline = Timeline::merge(&[first.console(), second.console()]);
        assert_eq!(timeline.lost(), [0; 0], "{machine}");
        assert_eq!(timeline.overlap(), None, "{machine}");
        asserted(1, "the rate after the restore", || {
            sleep(1.0);
            let rate = second.console().writes_per_s(Qemu::last(Duration::from_secs(1)));
            assert!(rate > 0.85 * 24_414.0, "{machine}: {rate:.0} pages/s after the restore");
        });
    }
}

#[test]
fn a_live_move_shows_one_gap_and_one_guest() {
    let _alone = alone();
    let mut load = load("oltp@20");
    load.sweep_pages_per_s = Some(20_000);
    let spec = GuestSpec::new(128, load);
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("unix:{}", folder.path().join("wire").display());
    let mut source = Qemu::start(&spec).unwrap();
    source.wait_ready(READY).unwrap();
    let mut destination = Qemu::await_migration(&spec).unwrap();
    destination.qmp("migrate-incoming", json!({ "uri": uri })).unwrap();
    source.migrate(&uri, READY).unwrap();
    destination.wait_migrated(READY).unwrap();
    assert_eq!(destination.wait_swept(SWEPT).unwrap().bad, 0, "{:?}", destination.console().reports());

    let timeline = Timeline::merge(&[source.console(), destination.console()]);
    let gap = timeline.longest_gap(timeline.span());
    println!("gap {:?}", gap.length);
    assert!(gap.length < Duration::from_secs(2), "{gap:?}");
    assert_eq!(timeline.lost(), [0; 0]);
    assert_eq!(timeline.overlap(), None);

    // The source, let loose by hand, is a second guest: that must be seen.
    source.cont().unwrap();
    sleep(0.3);
    let overlap = Timeline::merge(&[source.console(), destination.console()]).overlap().unwrap();
    assert_eq!(overlap.consoles, (0, 1));
    assert!(!overlap.repeated.is_empty(), "{overlap:?}");
}

#[test]
fn kvm_runs_the_guest_as_tcg_does() {
    let _alone = alone();
    if !kvm_is_here() {
        return;
    }
    let spec = small_kvm_guest();
    let mut qemu = Qemu::start(&spec).unwrap();
    assert_eq!(qemu.qmp("query-kvm", json!({})).unwrap()["enabled"], true);
    let ready = qemu.wait_ready(KVM_READY).unwrap();
    println!("kvm: ready after {:?}, filled in {} ms", ready.at - qemu.started(), ready.fill_ms);
    assert_eq!(ready.zero + ready.dup + ready.text + ready.random, ready.pages);

    let asked = spec.load.rate_pages_per_s;
    let swept = qemu.wait_heartbeat(KVM_SWEPT, "a whole sweep", |beat| beat.sweeps >= 1).unwrap();
    println!("kvm: swept after another {:?}", swept.at - ready.at);
    assert_eq!(swept.bad, 0, "{:?}", qemu.console().reports());
    sleep(2.0);
    let rate = qemu.console().writes_per_s(Qemu::last(Duration::from_secs(2)));
    println!("kvm: {rate:.0} pages/s of {asked}");
    assert!(rate > 0.8 * f64::from(asked) && rate < 1.2 * f64::from(asked), "{rate:.0} pages/s");
    let beats = qemu.console().snapshot().heartbeats;
    assert!(beats.windows(2).all(|pair| pair[1].number == pair[0].number + 1));
    let mut spacing_us: Vec<u128> =
        beats.windows(2).map(|pair| (pair[1].at - pair[0].at).as_micros()).collect();
    spacing_us.sort_unstable();
    let median_us = spacing_us[spacing_us.len() / 2];
    println!("kvm: {} beats, median {median_us} µs, longest {:?} µs", beats.len(), spacing_us.last());
    assert!((9_000..=11_000).contains(&median_us), "{median_us} µs");

    // And it notices what is wrong.
    qemu.poke(0x80_0800, b"X").unwrap();
    assert_eq!(qemu.wait_heartbeat(KVM_SWEPT, "a bad page", |beat| beat.bad > 0).unwrap().bad, 1);
}

#[test]
fn an_idle_guest_leaves_the_machine_idle() {
    let _alone = alone();
    let qemu = Qemu::start(&GuestSpec::new(256, load("idle"))).unwrap();
    qemu.wait_ready(READY).unwrap();
    asserted(1, "what it uses", || {
        sleep(0.5);
        let before = cpu_ticks(qemu.pid()).unwrap();
        sleep(3.0);
        let used = (cpu_ticks(qemu.pid()).unwrap() - before) as f64 / 100.0 / 3.0;
        println!("idle guest: {:.1} % of a core", used * 100.0);
        assert!(used < 0.25, "{used}");
    });
}

#[test]
fn a_qemu_that_cannot_start_says_why() {
    let _guard = beside_others();
    let error = Qemu::start(&GuestSpec::new(64, load("idle")).machine("z80")).unwrap_err();
    assert!(error.to_string().contains("machine type"), "{error}");
}

#[test]
fn dropping_the_handle_ends_the_process() {
    let _guard = beside_others();
    let qemu = Qemu::start(&GuestSpec::new(64, load("idle"))).unwrap();
    let proc = format!("/proc/{}/stat", qemu.pid());
    assert!(std::fs::exists(&proc).unwrap());
    drop(qemu);
    assert!(!std::fs::exists(&proc).unwrap());
}

#[test]
fn a_killed_owner_takes_its_guest_along() {
    // This test runs itself as the owner that is killed.
    const OWNER: &str = "HIKYAKU_TEST_OWNER";
    if std::env::var_os(OWNER).is_some() {
        let qemu = Qemu::start(&GuestSpec::new(64, load("idle"))).unwrap();
        println!("qemu {}", qemu.pid());
        sleep(60.0);
        return;
    }
    let _guard = beside_others();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_owner_takes_its_guest_along", "--nocapture"])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(owner.stdout.take().unwrap());
    let pid = output.lines().find_map(|line| line.unwrap().strip_prefix("qemu ").map(str::to_owned)).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let proc = format!("/proc/{pid}/cmdline");
    // A zombie that nobody has reaped yet has no command line.
    let gone = (0..500).any(|_| {
        sleep(0.01);
        std::fs::read(&proc).map_or(true, |line| line.is_empty())
    });
    assert!(gone, "QEMU {pid} outlives the process that started it");
}

/// User and system time of a process; Linux counts in hundredths of a second.
fn cpu_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}
