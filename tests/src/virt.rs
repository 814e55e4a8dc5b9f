//! Two hosts with a libvirt each, over an emulated link, and a guest that belongs to the first of them.
//!
//! ```text
//!  host a: network namespace of the link, mount namespace of its own     host b: the same
//!    /run /etc/libvirt /var/lib/libvirt …  empty                           …
//!    libvirtd, hikyakud, QEMU (started by libvirt)                         libvirtd, hikyakud
//! ```
//! libvirt's directories are compiled in, so each host has its own of them. They are seen from outside below `/proc/PID/root`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hikyaku_lab::guest::console::{Console, Heartbeat};
use hikyaku_lab::guest::{IMAGE, Load, Timeline};
use hikyaku_lab::link::{self, Host, Network};
use tempfile::TempDir;

use crate::command::{Output, Running};
use crate::machine::{self, QemuBinary, need};
use crate::site::{self, Pair, Settings};

pub const GUEST: &str = "courier";
const MEMORY_MIB: u32 = 160;
/// A machine type that all QEMUs of the tests know.
const MACHINE: &str = "pc-q35-7.2";
/// Of `a`, and of `b`.
const LANDINGS: (&str, &str) = (
    r#"{ alias = "a.hikyaku", address = "127.77.0.1", ports = "49152-49167" }"#,
    r#"{ alias = "b.hikyaku", address = "127.77.0.2", ports = "49168-49183" }"#,
);
/// In each host's own directory.
const ODD_MEMORY: &str = "/run/t/qemu";
pub const DISK_BYTES: u64 = 64 << 20;

const START_LIMIT: Duration = Duration::from_secs(30);
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const SWEEP_LIMIT: Duration = Duration::from_secs(120);
const VIRSH_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// In a mount namespace of its own: everything that two libvirts would share.
const PREPARE: &str = r#"
set -e
if [ -n "$OVER_USR" ]; then mount -t overlay -o "lowerdir=$OVER_USR:/usr" overlay /usr; fi
mkdir -p /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
for d in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do mount -t tmpfs tmpfs $d; done
mkdir /run/etc /run/etc.work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work overlay /etc
umount -l /sys/fs/cgroup 2>/dev/null || true
rm -rf /etc/libvirt
mkdir -p /run/libvirt /run/t /run/lock /etc/libvirt/hooks/qemu.d
echo prepared
exec sleep infinity
"#;

/// The programs of one version.
#[derive(Debug, Clone)]
pub struct Libvirt {
    pub libvirtd: PathBuf,
    pub virsh: PathBuf,
    /// What is laid over the machine's `/usr` for it.
    over_usr: Option<PathBuf>,
}

impl Libvirt {
    /// The machine's.
    pub fn installed() -> Option<Libvirt> {
        let find = |name: &str| {
            let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
            places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists())
        };
        let (libvirtd, virsh) = (find("libvirtd")?, find("virsh")?);
        Some(Libvirt { libvirtd, virsh, over_usr: None })
    }

    /// An older one, which `tests/run` unpacks.
    pub fn older() -> Option<Libvirt> {
        let root = PathBuf::from(std::env::var_os("HIKYAKU_LIBVIRT_OTHER")?);
        let over_usr = Some(root.join("usr"));
        Some(Libvirt { libvirtd: "/usr/sbin/libvirtd".into(), virsh: "/usr/bin/virsh".into(), over_usr })
    }
}

/// A host: killed, with everything in it, on drop.
#[derive(Debug)]
pub struct VirtHost {
    name: &'static str,
    /// Holds the mount namespace.
    holder: Child,
    libvirtd: Option<Running>,
    libvirt: Libvirt,
}

impl VirtHost {
    fn start(network: &Network, name: &'static str, libvirt: &Libvirt) -> VirtHost {
        let host = network.host(name);
        let mut command = host.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", PREPARE]);
        if let Some(over_usr) = &libvirt.over_usr {
            command.env("OVER_USR", over_usr);
        }
        link::die_with_parent(&mut command);
        let mut holder =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("unshare (util-linux)");
        let mut said = String::new();
        let mut out = std::io::BufReader::new(holder.stdout.take().expect("its output"));
        std::io::BufRead::read_line(&mut out, &mut said).expect("its output");
        assert_eq!(said.trim(), "prepared", "a mount namespace of its own");
        let mut virt = VirtHost { name, holder, libvirtd: None, libvirt: libvirt.clone() };
        virt.configure();
        virt.start_libvirtd(host);
        virt
    }

    fn configure(&self) {
        let uuid = format!("11111111-2222-4333-8444-55555555000{}", self.name.to_uppercase());
        let libvirtd = format!(
            "host_uuid = \"{uuid}\"\nunix_sock_group = \"root\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
             listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\naudit_level = 0\nlog_outputs = \"2:stderr\"\n"
        );
        let qemu = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\n\
                    security_driver = \"none\"\nnamespaces = []\nstdio_handler = \"file\"\ncgroup_controllers = []\n";
        fs::write(self.inside("/etc/libvirt/libvirtd.conf"), libvirtd).expect("a file");
        fs::write(self.inside("/etc/libvirt/qemu.conf"), qemu).expect("a file");
    }

    /// A running one is ended first. Its guests run on.
    pub fn start_libvirtd(&mut self, host: &Host) {
        self.end_libvirtd();
        let mut command = self.command(host, crate::binaries::helper("reaper"));
        command.arg(&self.libvirt.libvirtd).args([
            "--listen",
            "-f",
            "/etc/libvirt/libvirtd.conf",
            "-p",
            "/run/libvirtd.pid",
        ]);
        self.libvirtd = Some(Running::start(&mut command));
        let deadline = Instant::now() + START_LIMIT;
        while UnixStream::connect(self.inside("/run/libvirt/libvirt-sock")).is_err() {
            assert!(
                Instant::now() < deadline,
                "libvirtd of {} does not answer: {:?}",
                self.name,
                self.libvirtd
            );
            std::thread::sleep(POLL);
        }
    }

    /// The one that runs is gone, and its sockets with it: its reaper dies first.
    fn end_libvirtd(&mut self) {
        let Some(reaper) = self.libvirtd.take() else { return };
        let pid = fs::read_to_string(self.inside("/run/libvirtd.pid")).expect("libvirtd has written it");
        drop(reaper);
        // Dead, with all its threads, if perhaps not buried.
        let is_there = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let lives = stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| !rest.starts_with(['Z', 'X']) && !rest.is_empty());
            lives || fs::read_dir(format!("/proc/{}/task", pid.trim())).map_or(0, Iterator::count) > 1
        };
        let deadline = Instant::now() + START_LIMIT;
        while is_there() {
            assert!(Instant::now() < deadline, "libvirtd of {} does not end", self.name);
            std::thread::sleep(POLL);
        }
    }

    /// A path of the host's, as it is seen from outside.
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    pub fn mount_namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/mnt", self.holder.id()))
    }

    /// A program inside the host.
    pub fn command(&self, host: &Host, program: impl AsRef<OsStr>) -> Command {
        let mut command = host.command("nsenter");
        command.arg(format!("--mount={}", self.mount_namespace().display())).arg("--").arg(program);
        command
    }

    /// `virsh WORDS…`, to its end.
    pub fn virsh(&self, host: &Host, words: &[&str]) -> Output {
        self.virsh_beside(host, words).wait(VIRSH_LIMIT)
    }

    pub fn virsh_beside(&self, host: &Host, words: &[&str]) -> Running {
        let mut command = self.command(host, &self.libvirt.virsh);
        Running::start(command.args(["-c", "qemu:///system"]).args(words))
    }
}

impl Drop for VirtHost {
    fn drop(&mut self) {
        // What libvirtd started lives on without it: its QEMUs are in this host's namespace and in nobody else's.
        self.libvirtd = None;
        let ours = fs::read_link(self.mount_namespace());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let its = fs::read_link(format!("/proc/{pid}/ns/mnt"));
            if its.is_ok() && its.ok() == ours.as_ref().ok().cloned() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What is moved.
#[derive(Debug, Clone)]
pub struct Plan {
    pub link: &'static str,
    pub qemu: QemuBinary,
    pub libvirt: Libvirt,
    pub memory_mib: u32,
    /// It has a little more memory than libvirt says: TCG before 9.0 loses writes of a guest that has whole MiB (docs/qemu.md).
    pub odd_memory: bool,
    /// Guests leave and land without virsh being told of hikyaku.
    pub landings: bool,
    /// With a disk of its own at each host, of which only the source's has something on it.
    pub disk: bool,
    pub load: Load,
}

impl Plan {
    pub fn new(link: &'static str, qemu: &QemuBinary, libvirt: &Libvirt) -> Plan {
        let mut load = Load::preset("oltp").expect("a preset");
        load.sweep_pages_per_s = Some(MEMORY_MIB << 8);
        Plan {
            link,
            memory_mib: MEMORY_MIB,
            qemu: qemu.clone(),
            libvirt: libvirt.clone(),
            odd_memory: false,
            disk: false,
            landings: false,
            load,
        }
    }

    /// With what the machine has.
    #[track_caller]
    pub fn here(link: &'static str) -> Option<Plan> {
        let libvirt = need("libvirt", Libvirt::installed())?;
        Some(Plan::new(link, &need("QEMU", machine::qemu())?, &libvirt))
    }

    /// With an older libvirt, and a QEMU of its time.
    #[track_caller]
    pub fn older(link: &'static str) -> Option<Plan> {
        let libvirt = need("an older libvirt", Libvirt::older())?;
        let (qemu, _) = need("two QEMUs", machine::qemu_pair())?;
        Some(Plan { odd_memory: true, ..Plan::new(link, &qemu, &libvirt) })
    }

    pub fn disk(self, disk: bool) -> Plan {
        Plan { disk, ..self }
    }

    pub fn landings(self) -> Plan {
        Plan { landings: true, ..self }
    }

    fn emulator(&self) -> PathBuf {
        if self.odd_memory { ODD_MEMORY.into() } else { self.qemu.path.clone() }
    }

    /// The QEMU, given 8 KiB more than libvirt wants.
    fn odd_memory(&self) -> String {
        let bytes = u64::from(self.memory_mib) << 20;
        let (kib, more) = (bytes >> 10, bytes + 8192);
        format!(
            "#!/bin/bash\nwords=()\nfor word in \"$@\"; do\n\
             [[ $before == -m && $word == {mib} ]] && word={more_kib}k\nbefore=$word\n\
             word=${{word/size={kib}k/size={more_kib}k}}\nword=${{word/'\"size\":{bytes}'/'\"size\":{more}'}}\n\
             words+=(\"$word\")\ndone\nexec {qemu} \"${{words[@]}}\"\n",
            mib = self.memory_mib,
            more_kib = more >> 10,
            qemu = self.qemu.path.display(),
        )
    }

    fn xml(&self) -> String {
        let disk = match self.disk {
            true => {
                "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>\
                 <source file='/run/t/disk'/><target dev='vda' bus='virtio'/></disk>"
            }
            false => "",
        };
        format!(
            "<domain type='qemu'><name>{GUEST}</name><uuid>6e1b6d0c-2b2f-4b7e-9a53-0b9e3c1d2f10</uuid>\
             <memory unit='MiB'>{}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='{MACHINE}'>hvm</type><kernel>/run/t/kernel</kernel><cmdline>{}</cmdline></os>\
             <features><acpi/></features>\
             <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>\
             <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
             <devices><emulator>{}</emulator><controller type='usb' model='none'/><memballoon model='none'/>\
             <video><model type='none'/></video>\
             <serial type='unix'><source mode='bind' path='/run/t/console'/></serial>{disk}</devices></domain>",
            self.memory_mib,
            self.load.command_line(self.memory_mib),
            self.emulator().display(),
        )
    }
}

/// Fields end in this order: consoles, daemons, hosts, the link.
#[derive(Debug)]
pub struct Virt {
    pub source: Console,
    pub pair: Pair,
    pub a: VirtHost,
    pub b: VirtHost,
    pub network: Network,
    _files: TempDir,
}

impl Virt {
    /// Both libvirts and both daemons; the guest works at `a`.
    pub fn new(plan: &Plan) -> Virt {
        Virt::with(plan, |_| {})
    }

    pub fn with(plan: &Plan, mut adjust: impl FnMut(&mut Settings)) -> Virt {
        let network = site::network(plan.link);
        let (a, b) =
            (VirtHost::start(&network, "a", &plan.libvirt), VirtHost::start(&network, "b", &plan.libvirt));
        let pair = Pair::start_with(&network, |settings| {
            let host = if settings.name == "a" { &a } else { &b };
            settings.enter = Some(host.mount_namespace());
            settings.peers.iter_mut().for_each(|peer| peer.allow.push("libvirt"));
            settings.more.push_str("[libvirt]\nqemu_user = \"root\"\n");
            if plan.landings {
                let (its, other) = if settings.name == "a" { LANDINGS } else { (LANDINGS.1, LANDINGS.0) };
                let _ = writeln!(settings.more, "landing = {its}");
                settings.peers[0].more = format!("landing = {other}");
            }
            adjust(settings);
        });
        let files = tempfile::tempdir().expect("a temporary directory");
        for host in [&a, &b] {
            fs::write(host.inside("/run/t/kernel"), IMAGE).expect("the guest's program");
            if plan.odd_memory {
                let path = host.inside(ODD_MEMORY);
                fs::write(&path, plan.odd_memory()).expect("a script");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
            }
            if plan.disk {
                let disk = fs::File::create(host.inside("/run/t/disk")).expect("a disk");
                disk.set_len(DISK_BYTES).expect("a disk");
            }
        }
        if plan.disk {
            fs::write(a.inside("/run/t/disk"), disk_contents()).expect("a disk");
        }
        let xml = files.path().join("guest.xml");
        fs::write(&xml, plan.xml()).expect("a file");
        // What QEMU can do libvirt asks it once; at the destination it has before.
        let emulator = plan.emulator().display().to_string();
        let ask = ["domcapabilities", "--virttype", "qemu", "--emulatorbin", &emulator];
        let asked = b.virsh_beside(network.host("b"), &ask);
        a.virsh(network.host("a"), &["create", xml.to_str().expect("a path")]).expect_code(0);
        asked.wait(VIRSH_LIMIT).expect_code(0);
        let source = console(&a);
        let mut virt = Virt { source, pair, a, b, network, _files: files };
        virt.wait_beat(&virt.source, BOOT_LIMIT);
        if plan.landings {
            virt.set_up();
        }
        virt
    }

    /// As docs/libvirt.md has it, at both hosts; the guest runs meanwhile.
    fn set_up(&mut self) {
        for (name, site) in [("a", &self.pair.a), ("b", &self.pair.b)] {
            let virt = if name == "a" { &mut self.a } else { &mut self.b };
            let host = self.network.host(name);
            let config = site.config();
            let mut setup = virt.command(host, crate::binaries::product("hikyaku"));
            setup.args(["libvirt", "setup", "--apply", "--config"]).arg(config);
            Running::start(&mut setup).wait(VIRSH_LIMIT).expect_code(0);
            let hook = format!(
                "#!/bin/sh\nHIKYAKU_API={} exec {} \"$@\"\n",
                site.api().display(),
                crate::binaries::product("hikyaku-libvirt-hook").display()
            );
            let path = virt.inside("/etc/libvirt/hooks/qemu.d/hikyaku");
            fs::write(&path, hook).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file");
            virt.start_libvirtd(host);
        }
    }

    /// `hikyaku WORDS…` at `a`, inside the host.
    pub fn hikyaku_beside(&self, words: &[&str]) -> Running {
        let mut command = self.a.command(self.network.host("a"), crate::binaries::product("hikyaku"));
        command.arg("--api").arg(self.pair.a.api());
        Running::start(command.args(words))
    }

    /// The guest's console at `b`, as soon as there is a QEMU.
    pub fn console_there(&self) -> Console {
        console(&self.b)
    }

    pub fn virsh_a(&self, words: &[&str]) -> Output {
        self.a.virsh(self.network.host("a"), words)
    }

    pub fn virsh_b(&self, words: &[&str]) -> Output {
        self.b.virsh(self.network.host("b"), words)
    }

    /// What libvirt says of the guest there: `running`, `paused`, or nothing if it knows of none.
    pub fn state(&self, at: &str) -> Option<String> {
        let output =
            if at == "a" { self.virsh_a(&["domstate", GUEST]) } else { self.virsh_b(&["domstate", GUEST]) };
        (output.code == Some(0)).then(|| output.stdout.trim().to_owned())
    }

    /// The guest runs at `b`, and nowhere else, and nothing of it was lost.
    #[track_caller]
    pub fn check_moved(&self, there: &Console, disk: bool) {
        assert_eq!(self.state("b").as_deref(), Some("running"), "at the destination");
        assert_eq!(self.state("a"), None, "at the source");
        self.check_memory(there);
        let timeline = Timeline::merge(&[&self.source, there]);
        assert_eq!(timeline.overlap(), None, "two guests ran");
        assert_eq!(timeline.bad(), 0, "bad pages");
        if disk {
            assert!(
                fs::read(self.b.inside("/run/t/disk")).expect("a disk") == disk_contents(),
                "the disks differ"
            );
        }
    }

    /// The guest runs at `a`, and nowhere else.
    #[track_caller]
    pub fn check_stayed(&self) {
        assert_eq!(self.state("a").as_deref(), Some("running"), "at the source");
        assert_eq!(self.state("b"), None, "at the destination");
        self.check_memory(&self.source);
    }

    /// The same, when both libvirts have tidied up.
    #[track_caller]
    pub fn check_stays(&self, within: Duration) {
        let deadline = Instant::now() + within;
        while self.state("a").as_deref() != Some("running") || self.state("b").is_some() {
            assert!(
                Instant::now() < deadline,
                "at the source {:?}, at the destination {:?}",
                self.state("a"),
                self.state("b")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        self.check_stayed();
    }

    #[track_caller]
    fn check_memory(&self, console: &Console) {
        let now = self.wait_beat(console, BOOT_LIMIT);
        // The sweep that is under way has passed some pages already: the next one counts.
        let swept = console.wait(SWEEP_LIMIT, |log| {
            log.heartbeats.last().filter(|beat| beat.sweeps >= now.sweeps + 2).copied()
        });
        let swept =
            swept.unwrap_or_else(|| panic!("the guest does not go over its memory: {:?}", console.reports()));
        assert_eq!(swept.bad, 0, "bad pages: {:?}", console.reports());
    }

    #[track_caller]
    fn wait_beat(&self, console: &Console, limit: Duration) -> Heartbeat {
        let seen = console.snapshot().heartbeats.len();
        let beat = console.wait(limit, |log| log.heartbeats.get(seen).copied());
        beat.unwrap_or_else(|| panic!("no heartbeat within {limit:?}: {:?}", console.reports()))
    }
}

/// QEMU listens; what the guest says before somebody is there is lost.
fn console(host: &VirtHost) -> Console {
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        match UnixStream::connect(host.inside("/run/t/console")) {
            Ok(stream) => return Console::read_from(stream).expect("a console"),
            Err(error) => assert!(Instant::now() < deadline, "no console at {}: {error}", host.name),
        }
        std::thread::sleep(POLL);
    }
}

/// Some of it zero, some of it text, some of it noise.
fn disk_contents() -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES as usize];
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for (n, sector) in bytes.chunks_exact_mut(4096).enumerate() {
        match n % 4 {
            0 => {}
            1 => sector.iter_mut().enumerate().for_each(|(i, byte)| *byte = b"the quick brown fox "[i % 20]),
            _ => sector.as_chunks_mut::<8>().0.iter_mut().for_each(|chunk| {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                *chunk = word.to_le_bytes();
            }),
        }
    }
    bytes
}
