//! Real QEMUs for the tests: one to send, played to by us; one to receive what we wrote.
//!
//! `HIKYAKU_QEMU` names the binary (else `qemu-system-x86_64` from PATH), `HIKYAKU_QEMU_DATA` its data
//! directories, separated by colons (`-L`).

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hikyaku_qemu::qmp::{Client, ClientConfig};
use hikyaku_qemu::return_path::{Message, Reader};
use hikyaku_qemu::stream::{
    BlockIdx, BlockName, Events, PAGE_BYTES, Parser, ParserConfig, RamLayout, TailScanner,
};
use nix::sys::socket::{setsockopt, sockopt};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Everything that waits for QEMU waits this long at most; a busy machine needs some of it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Qemu {
    binary: PathBuf,
    data: Vec<PathBuf>,
}

/// QEMU, or `None` after saying so where `tests/run` counts it. Under `HIKYAKU_TESTS=all` its absence fails the test.
pub fn qemu() -> Option<Qemu> {
    let wanted = env::var_os("HIKYAKU_QEMU").map(PathBuf::from);
    let binary = wanted.clone().unwrap_or_else(|| PathBuf::from("qemu-system-x86_64"));
    let works = Command::new(&binary).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if works.is_ok_and(|s| s.success()) {
        let data = env::var_os("HIKYAKU_QEMU_DATA").unwrap_or_default();
        return Some(Qemu { binary, data: env::split_paths(&data).collect() });
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let how = format!("no QEMU at {}: apt-get install qemu-system-x86", binary.display());
    assert_ne!(env::var("HIKYAKU_TESTS").as_deref(), Ok("all"), "{test}: {how}");
    assert!(wanted.is_none(), "{test}: {how}, or point HIKYAKU_QEMU at one");
    // Not by `eprintln!`: the test harness would keep it to itself.
    std::io::stderr().write_all(format!("skipped: {test}: {how}\n").as_bytes()).unwrap();
    if let Some(log) = env::var_os("HIKYAKU_SKIP_LOG") {
        let mut log = fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        writeln!(log, "{test}: needs QEMU").unwrap();
    }
    None
}

/// What the guest has and does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setup {
    /// Every kind of device the tests are about; never runs.
    DevicesStopped,
    /// The same, SeaBIOS runs and finds nothing to boot.
    DevicesRunning,
    /// Few devices; a boot sector that changes two bytes in each of 128 pages, over and over.
    Writer,
}

/// Real mode: `inc word` at the start of each page from 64 KiB to 576 KiB, for ever.
///
/// Toggling CR0.WP empties TCG's TLB. Without it QEMU before 9.0 misses, under TCG, every write that goes through
/// an entry made before the dirty bitmap was last cleared (`docs/qemu.md`).
const WRITER_BOOT_CODE: [u8; 32] = [
    0x0f, 0x20, 0xc0, // start: mov eax, cr0
    0x66, 0x35, 0x00, 0x00, 0x01, 0x00, // xor eax, 0x10000
    0x0f, 0x22, 0xc0, // mov cr0, eax
    0xb8, 0x00, 0x10, // mov ax, 0x1000
    0x8e, 0xc0, //        next: mov es, ax
    0x26, 0xff, 0x06, 0x00, 0x00, // inc word [es:0]
    0x05, 0x00, 0x01, // add ax, 0x100
    0x3d, 0x00, 0x90, // cmp ax, 0x9000
    0x72, 0xf1, //       jb next
    0xeb, 0xe0, //       jmp start
];

pub struct Guest {
    child: Child,
    dir: TempDir,
    pub qmp: Client,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    pub async fn source(&self, setup: Setup) -> Guest {
        self.start(setup, "", setup == Setup::DevicesStopped, false).await
    }

    /// Waits for `migrate-incoming`.
    pub async fn destination(&self, setup: Setup) -> Guest {
        self.start(setup, "", false, true).await
    }

    pub async fn start(&self, setup: Setup, machine_options: &str, stopped: bool, incoming: bool) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let mut command = Command::new(&self.binary);
        for data in &self.data {
            command.arg("-L").arg(data);
        }
        command.args(["-nodefaults", "-display", "none", "-accel", "tcg", "-machine"]);
        command.arg(format!("q35{machine_options}"));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        match setup {
            Setup::DevicesStopped | Setup::DevicesRunning => every_device(&mut command),
            Setup::Writer => writer_guest(&mut command, dir.path()),
        }
        if stopped {
            command.arg("-S");
        }
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let qmp = timeout(PATIENCE, async {
            loop {
                match Client::connect(&socket, ClientConfig::default()).await {
                    Ok(client) => return client,
                    Err(e) => assert!(child.try_wait().unwrap().is_none(), "QEMU ended: {command:?}: {e}"),
                }
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("QEMU did not open its QMP socket");
        Guest { child, dir, qmp }
    }
}

fn every_device(command: &mut Command) {
    command.args(["-m", "64M,maxmem=1G"]);
    let devices = [
        ("-object", "memory-backend-ram,id=vmem0,size=128M"),
        ("-device", "virtio-mem-pci,id=vm0,memdev=vmem0,requested-size=32M"),
        ("-netdev", "user,id=net0,restrict=on"),
        ("-device", "virtio-net-pci,netdev=net0,romfile="),
        ("-blockdev", "driver=null-co,node-name=disk0,size=67108864,read-zeroes=on"),
        ("-device", "virtio-blk-pci,drive=disk0"),
        ("-blockdev", "driver=null-co,node-name=disk1,size=67108864,read-zeroes=on"),
        ("-device", "virtio-scsi-pci"),
        ("-device", "scsi-hd,drive=disk1"),
        ("-device", "virtio-balloon-pci"),
        ("-device", "qemu-xhci"),
        ("-device", "usb-tablet"),
        ("-device", "VGA"),
    ];
    for (kind, value) in devices {
        command.args([kind, value]);
    }
}

fn writer_guest(command: &mut Command, dir: &Path) {
    let mut sector = [0u8; 512];
    sector[..WRITER_BOOT_CODE.len()].copy_from_slice(&WRITER_BOOT_CODE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let image = dir.join("boot");
    fs::write(&image, sector).unwrap();
    // SeaBIOS boots no disk that has less than a cylinder.
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(8 << 20).unwrap();
    command.args(["-m", "32M", "-device", "VGA", "-blockdev"]);
    command.arg(format!(
        "driver=raw,node-name=boot,read-only=on,file.driver=file,file.locking=off,file.filename={}",
        image.display()
    ));
    command.args(["-device", "virtio-blk-pci,drive=boot,bootindex=0"]);
}

impl Guest {
    /// The other end of a socket that QEMU knows as `name`.
    pub async fn channel(&self, name: &str) -> UnixStream {
        self.channel_of(name, None).await
    }

    /// The same; QEMU can have only about that much in the socket.
    pub async fn channel_of(&self, name: &str, send_buffer_bytes: Option<usize>) -> UnixStream {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        if let Some(bytes) = send_buffer_bytes {
            setsockopt(&theirs, sockopt::SndBuf, &bytes).unwrap();
        }
        ours.set_nonblocking(true).unwrap();
        self.qmp.getfd(name, OwnedFd::from(theirs)).await.unwrap();
        UnixStream::from_std(ours).unwrap()
    }

    pub async fn wait_migration(&self, status: &str) {
        let mut last = None;
        let done = timeout(PATIENCE, async {
            loop {
                let info = self.qmp.query_migrate().await.unwrap();
                if info.is(status) {
                    return;
                }
                assert!(!info.is_final(), "wanted {status}, QEMU says {info:?}");
                last = Some(info);
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert!(done.is_ok(), "wanted {status}, QEMU still says {last:?}");
    }

    /// Whether the writer's boot sector is at work: the word it counts up changes.
    pub async fn wait_writing(&self) {
        timeout(PATIENCE, async {
            let mut seen = Vec::new();
            while seen.len() < 3 {
                let now = self.peek().await;
                if now != [0, 0] && !seen.contains(&now) {
                    seen.push(now);
                }
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the guest did not boot");
    }

    async fn peek(&self) -> [u8; 2] {
        self.memory(0x8_0000, 2).await.try_into().unwrap()
    }

    /// Guest-physical memory.
    pub async fn memory(&self, from: u64, len: usize) -> Vec<u8> {
        let path = self.dir.path().join("memory");
        let args = serde_json::json!({"val": from, "size": len, "filename": path});
        let _: serde_json::Value = self.qmp.execute("pmemsave", args).await.unwrap();
        fs::read(&path).unwrap()
    }
}

/// The guest's memory as a stream leaves it: the last content of each page; `None` is zeros.
pub type Image = BTreeMap<(BlockName, u64), Option<Box<[u8; PAGE_BYTES]>>>;

/// What a stream told, kept.
#[derive(Default)]
pub struct Told {
    pub prefix: Vec<u8>,
    pub layout: Option<RamLayout>,
    /// Latest content, by block and offset.
    pub pages: BTreeMap<(BlockIdx, u64), Option<Box<[u8; PAGE_BYTES]>>>,
    pub records: u64,
    /// Records of each PART, in order, with the position among `records` where it ended.
    pub parts: Vec<u64>,
    pub end_records: Option<u64>,
    pub tail: Vec<u8>,
    pub selected: Vec<BlockIdx>,
}

impl Events for Told {
    fn opaque(&mut self, bytes: &[u8]) {
        self.prefix.extend_from_slice(bytes);
    }

    fn blocks(&mut self, layout: &RamLayout) {
        self.layout = Some(layout.clone());
    }

    fn zero(&mut self, block: BlockIdx, offset: u64) {
        self.records += 1;
        self.pages.insert((block, offset), None);
    }

    fn page(&mut self, block: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
        self.records += 1;
        self.pages.insert((block, offset), Some(Box::new(*data)));
    }

    fn select_block(&mut self, block: BlockIdx) {
        self.selected.push(block);
    }

    fn ram_part(&mut self, pages: u64) {
        self.parts.push(pages);
    }

    fn ram_end(&mut self, pages: u64) {
        self.end_records = Some(pages);
    }

    fn tail(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }
}

impl Told {
    pub fn layout(&self) -> &RamLayout {
        self.layout.as_ref().expect("the stream listed no blocks")
    }

    pub fn image(&self) -> Image {
        let layout = self.layout();
        // A page of zeros that was sent whole is a page of zeros.
        let page = |p: &Option<Box<[u8; PAGE_BYTES]>>| p.clone().filter(|p| p.iter().any(|b| *b != 0));
        self.pages
            .iter()
            .map(|((block, offset), data)| {
                ((layout.block(*block).unwrap().name.clone(), *offset), page(data))
            })
            .collect()
    }

    pub fn of(stream: &[u8]) -> Self {
        let mut told = Told::default();
        let mut parser = Parser::new(ParserConfig::default());
        assert_eq!(parser.feed(stream, &mut told).expect("not understood"), stream.len());
        parser.finish().unwrap();
        told
    }
}

/// A whole stream from a real QEMU, and how it came.
pub struct Capture {
    pub stream: Vec<u8>,
    /// Ends of the pieces in which the tail was read.
    pub tail_reads: Vec<usize>,
}

/// Migrates `guest` away and plays the destination: answers PING, and SHUT once the tail is complete.
/// The guest is left `completed`.
pub async fn capture(guest: &Guest, capabilities: &[(&str, bool)]) -> Capture {
    let mut wanted = vec![("return-path", true)];
    wanted.extend_from_slice(capabilities);
    assert_eq!(guest.qmp.migrate_set_capabilities(&wanted).await.unwrap(), [""; 0]);
    let mut socket = guest.channel("out").await;
    guest.qmp.migrate_fd("out").await.unwrap();
    let mut tail = TailWatch::default();
    let mut capture = Capture { stream: Vec::new(), tail_reads: Vec::new() };
    let mut parser = Parser::new(ParserConfig::default());
    let (mut buf, mut from) = (vec![0; 256 << 10], 0);
    while !tail.scanner.complete() {
        let n = timeout(PATIENCE, socket.read(&mut buf)).await.expect("the stream stopped").unwrap();
        assert!(n > 0, "QEMU closed its stream before the tail was complete");
        capture.stream.extend_from_slice(&buf[..n]);
        from += parser.feed(&capture.stream[from..], &mut tail).expect("not understood");
        if parser.in_tail() {
            capture.tail_reads.push(capture.stream.len());
        }
    }
    socket.write_all(&Message::Shut(0).to_bytes().unwrap()).await.unwrap();
    guest.wait_migration("completed").await;
    // Nothing may come behind what was taken for the end.
    let mut rest = Vec::new();
    drop(timeout(Duration::from_millis(50), socket.read_to_end(&mut rest)).await);
    assert_eq!(rest, [0; 0], "bytes after the end of the tail");
    capture
}

/// Looks at the tail only.
#[derive(Default)]
pub struct TailWatch {
    pub scanner: TailScanner,
    pub ram_ended: bool,
    pub parts: Vec<u64>,
}

impl Events for TailWatch {
    fn opaque(&mut self, _bytes: &[u8]) {}
    fn blocks(&mut self, _layout: &RamLayout) {}
    fn zero(&mut self, _block: BlockIdx, _offset: u64) {}
    fn page(&mut self, _block: BlockIdx, _offset: u64, _data: &[u8; PAGE_BYTES]) {}
    fn select_block(&mut self, _block: BlockIdx) {}
    fn ram_part(&mut self, pages: u64) {
        self.parts.push(pages);
    }
    fn ram_end(&mut self, _pages: u64) {
        self.ram_ended = true;
    }
    fn tail(&mut self, bytes: &[u8]) {
        self.scanner.push(bytes);
    }
}

/// Loads `stream` into a waiting QEMU; it must arrive paused, say `completed`, and send SHUT(0).
pub async fn load(guest: &Guest, stream: &[u8]) {
    let socket = guest.channel("in").await;
    guest.qmp.migrate_incoming_fd("in").await.unwrap();
    let (mut from_qemu, mut to_qemu) = socket.into_split();
    let (mut messages, mut reader, mut buf) = (Vec::new(), Reader::new(), [0; 4096]);
    let returned = async {
        while !messages.iter().any(|m| matches!(m, Message::Shut(_))) {
            let n = from_qemu.read(&mut buf).await.unwrap();
            assert!(n > 0, "QEMU closed the return path without SHUT, after {messages:?}");
            reader.push(&buf[..n], |m| messages.push(m)).unwrap();
        }
    };
    let (sent, returned) =
        tokio::join!(timeout(PATIENCE, to_qemu.write_all(stream)), timeout(PATIENCE, returned));
    sent.expect("QEMU stopped reading").unwrap();
    returned.expect("no SHUT on the return path");
    assert!(messages.contains(&Message::Shut(0)), "{messages:?}");
    guest.wait_migration("completed").await;
    let state = guest.qmp.query_status().await.unwrap();
    assert!(!state.running, "{state:?}");
}

/// A stream that stopped being understood on the way, relayed to its end.
pub struct Broken {
    /// The reason, and which of the flags in it is CONTINUE.
    pub why: (hikyaku_qemu::stream::Why, u16),
    pub stream: Vec<u8>,
    pub at: usize,
    pub resume: hikyaku_qemu::stream::Resume,
    pub told: Told,
}

/// Migrates a guest whose QEMU sends deltas, to the end; stops the guest when the first delta has come.
pub async fn until_not_understood(guest: &Guest) -> Broken {
    let wanted = [("return-path", true), ("xbzrle", true), ("switchover-ack", true)];
    let unknown = guest.qmp.migrate_set_capabilities(&wanted).await.unwrap();
    // Slow enough that the guest writes again before QEMU has sent what it wrote: it must not converge.
    let parameters = serde_json::json!({"downtime-limit": 1, "max-bandwidth": 1 << 20});
    guest.qmp.migrate_set_parameters(parameters).await.unwrap();
    let mut socket = guest.channel("out").await;
    guest.qmp.migrate_fd("out").await.unwrap();
    let (mut stream, mut told, mut from) = (Vec::new(), Told::default(), 0);
    let mut parser = Parser::new(ParserConfig::default());
    let mut buf = vec![0; 256 << 10];
    let broken = loop {
        let n = timeout(PATIENCE, socket.read(&mut buf)).await.expect("the stream stopped").unwrap();
        assert!(n > 0, "QEMU closed its stream");
        stream.extend_from_slice(&buf[..n]);
        match parser.feed(&stream[from..], &mut told) {
            Ok(n) => from += n,
            Err(broken) => break broken,
        }
        assert!(
            !parser.in_tail(),
            "no delta came before the end: parts {:?}, end {:?}, {unknown:?}",
            told.parts,
            told.end_records
        );
    };
    let at = usize::try_from(broken.at).unwrap();
    assert_eq!(at, from + broken.consumed_before);
    // The guest stands still; release QEMU, and take the rest until it has nothing more to say.
    let (mut reading, mut writing) = socket.into_split();
    let release = async move {
        guest.qmp.stop().await.unwrap();
        let fast = serde_json::json!({"downtime-limit": 2000, "max-bandwidth": 0});
        guest.qmp.migrate_set_parameters(fast).await.unwrap();
        if unknown.is_empty() {
            writing.write_all(&Message::SwitchoverAck.to_bytes().unwrap()).await.unwrap();
        }
        writing
    };
    let rest = async {
        let mut scanner = TailScanner::new();
        scanner.push(&stream[at..]);
        while !scanner.complete() {
            let n = timeout(PATIENCE, reading.read(&mut buf)).await.expect("the stream stopped").unwrap();
            assert!(n > 0, "QEMU closed its stream");
            stream.extend_from_slice(&buf[..n]);
            scanner.push(&buf[..n]);
        }
    };
    let (mut writing, ()) = tokio::join!(release, rest);
    writing.write_all(&Message::Shut(0).to_bytes().unwrap()).await.unwrap();
    guest.wait_migration("completed").await;
    let continues = match broken.why {
        hikyaku_qemu::stream::Why::RamFlags(flags) => flags & 0x020,
        _ => 0,
    };
    Broken { why: (broken.why, continues), stream, at, resume: broken.resume, told }
}
