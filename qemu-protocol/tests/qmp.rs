//! The QMP client against servers that misbehave, and against a real QEMU.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::{Setup, qemu};
use hikyaku_qemu::qmp::{Client, ClientConfig, ErrorKind};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"}, "capabilities": ["oob", "new"]}}"#;

fn config() -> ClientConfig {
    ClientConfig {
        connect_timeout: Duration::from_secs(10),
        command_timeout: Duration::from_secs(10),
        max_line_bytes: 100_000,
        ..ClientConfig::default()
    }
}

/// The server's end, after greeting and negotiation.
struct Server {
    stream: BufReader<UnixStream>,
}

impl Server {
    async fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    async fn heard(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn answer(&mut self, value: Value) -> Value {
        let command = self.heard().await;
        self.say(&json!({"return": value, "id": command["id"]}).to_string()).await;
        command
    }
}

async fn pair() -> (Client, Server) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut server = Server { stream: BufReader::new(theirs) };
    let negotiate = async {
        server.say(GREETING).await;
        assert_eq!(server.answer(json!({})).await["execute"], "qmp_capabilities");
    };
    let (client, ()) = tokio::join!(Client::start(ours, "/the/socket", config()), negotiate);
    (client.unwrap(), server)
}

#[tokio::test]
async fn replies_go_to_who_asked_whatever_comes_between() {
    let (client, mut server) = pair().await;
    let mut events = client.events();
    let (status, name, ()) = tokio::join!(client.query_status(), client.query_name(), async {
        let (first, second) = (server.heard().await, server.heard().await);
        server.say(r#"{"event": "NEW_EVENT", "data": {"a": [1]}, "timestamp": {"seconds": 1, "microseconds": 2}}"#).await;
        server.say(&json!({"return": {"name": "g", "new": 1}, "id": second["id"]}).to_string()).await;
        let running = json!({"status": "running", "running": true, "singlestep": false});
        server.say(&json!({"return": running, "id": first["id"]}).to_string()).await;
    });
    assert!(status.unwrap().running);
    assert_eq!(name.unwrap().as_deref(), Some("g"));
    let event = events.next().await.unwrap();
    assert_eq!((event.name.as_str(), event.at_us), ("NEW_EVENT", Some(1_000_002)));
    assert_eq!(client.greeting_version().qemu.major, 10);
}

#[tokio::test]
async fn a_refusal_says_what_qemu_said_about_which_command_on_which_socket() {
    let (client, mut server) = pair().await;
    let (result, ()) = tokio::join!(client.cont(), async {
        let id = server.heard().await["id"].clone();
        let error = json!({"class": "GenericError", "desc": "Failed to get \"write\" lock"});
        server.say(&json!({"error": error, "id": id}).to_string()).await;
    });
    let error = result.unwrap_err();
    assert!(error.is_refusal() && !error.is_closed());
    assert_eq!(
        error.to_string(),
        "cont on /the/socket: QEMU says: Failed to get \"write\" lock (GenericError)"
    );
}

#[tokio::test]
async fn after_a_time_out_the_late_answer_is_nobodys() {
    let (client, mut server) = pair().await;
    let limit = Duration::from_millis(50);
    let error = client.execute_within::<Value>("slow", (), limit).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Timeout(t) if t == limit), "{error}");
    let late = server.heard().await["id"].clone();
    server.say(&json!({"return": {"late": true}, "id": late}).to_string()).await;
    let (value, _) = tokio::join!(client.execute::<Value>("next", ()), server.answer(json!(5)));
    assert_eq!(value.unwrap(), json!(5));
}

#[tokio::test]
async fn garbage_ends_the_connection_for_those_who_wait_and_those_who_come() {
    for garbage in ["not json".to_string(), "{}".to_string(), format!("\"{}\"", "x".repeat(100_001))] {
        let (client, mut server) = pair().await;
        let mut events = client.events();
        let (waiting, ()) = tokio::join!(client.stop(), async {
            server.heard().await;
            server.say(&garbage).await;
        });
        assert!(matches!(waiting.unwrap_err().kind, ErrorKind::Codec(_)));
        assert!(client.stop().await.unwrap_err().is_closed());
        assert_eq!(events.next().await, None);
    }
}

#[tokio::test]
async fn quit_may_close_instead_of_answering_and_nothing_else_may() {
    for (quit, fine) in [(true, true), (false, false)] {
        let (client, mut server) = pair().await;
        let close = async move {
            server.heard().await;
            drop(server);
        };
        let (result, ()) =
            if quit { tokio::join!(client.quit(), close) } else { tokio::join!(client.stop(), close) };
        assert_eq!(result.is_ok(), fine, "{result:?}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_may_have_another_client() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let _silent = UnixListener::bind(&path).unwrap();
    let config = ClientConfig { connect_timeout: Duration::from_millis(50), ..config() };
    let error = Client::connect(&path, config.clone()).await.unwrap_err();
    assert!(error.to_string().contains("another may be connected"), "{error}");
    let error = Client::connect(dir.path().join("none"), config).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Io(_)), "{error}");
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    let (client, server) = pair().await;
    let server = server.stream.into_inner();
    let file = tempfile::tempfile().unwrap();
    let inode = file.metadata().unwrap().ino();
    let receive = async {
        loop {
            server.readable().await.unwrap();
            let (mut buf, mut space) = ([0; 1000], cmsg_space!([i32; 4]));
            let mut iov = [IoSliceMut::new(&mut buf)];
            let Ok(message) =
                recvmsg::<()>(server.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_DONTWAIT)
            else {
                continue;
            };
            let fds: Vec<_> = message.cmsgs().unwrap().collect();
            let [ControlMessageOwned::ScmRights(fds)] = &fds[..] else { panic!("{fds:?}") };
            let path = format!("/proc/self/fd/{}", fds[0]);
            let got = std::fs::metadata(path).unwrap().ino();
            let len = message.bytes;
            let command: Value = serde_json::from_slice(&buf[..len]).unwrap();
            nix::unistd::close(fds[0]).unwrap();
            let reply = json!({"return": {}, "id": command["id"]}).to_string() + "\n";
            server.try_write(reply.as_bytes()).unwrap();
            return (got, command);
        }
    };
    let (result, (got, command)) = tokio::join!(client.getfd("out", OwnedFd::from(file)), receive);
    result.unwrap();
    assert_eq!(got, inode);
    assert_eq!((&command["execute"], &command["arguments"]), (&json!("getfd"), &json!({"fdname": "out"})));
}

#[tokio::test]
async fn dropping_the_client_closes_the_connection() {
    let (client, mut server) = pair().await;
    let other = client.clone();
    drop(client);
    let (ok, _) = tokio::join!(other.stop(), server.answer(json!({})));
    ok.unwrap();
    drop(other);
    let mut line = String::new();
    assert_eq!(server.stream.read_line(&mut line).await.unwrap(), 0);
}

#[tokio::test]
async fn a_real_qemu_answers_all_that_is_asked() {
    let Some(qemu) = qemu() else { return };
    let guest = qemu.source(Setup::DevicesStopped).await;
    let qmp = &guest.qmp;
    let version = qmp.query_version().await.unwrap();
    assert_eq!(version.qemu, qmp.greeting_version().qemu);
    assert!(version.qemu.major >= 6);
    let machine = qmp.machine_type().await.unwrap();
    assert!(machine.starts_with("pc-q35-"), "{machine}");
    assert_eq!(qmp.query_name().await.unwrap(), None);
    assert_eq!(qmp.query_uuid().await.unwrap().len(), 36);
    let memory = qmp.query_memory_size_summary().await.unwrap();
    assert_eq!(memory.base_bytes, 64 << 20);
    let state = qmp.query_status().await.unwrap();
    assert_eq!((state.status.as_str(), state.running), ("prelaunch", false));
    assert_eq!(qmp.query_migrate().await.unwrap().status, None);
    let known = qmp.query_migrate_capabilities().await.unwrap();
    assert_eq!(known.get("return-path"), Some(false));
    assert_eq!(known.get("no-such"), None);
    let unknown = qmp.migrate_set_capabilities(&[("no-such", true), ("events", true)]).await.unwrap();
    assert_eq!(unknown, ["no-such"]);
    assert_eq!(qmp.query_migrate_capabilities().await.unwrap().get("events"), Some(true));
    qmp.migrate_set_parameters(json!({"downtime-limit": 7})).await.unwrap();
    assert_eq!(qmp.query_migrate_parameters().await.unwrap()["downtime-limit"], 7);
    let refused = qmp.migrate_set_parameters(json!({"no-such": 7})).await.unwrap_err();
    assert!(refused.is_refusal(), "{refused}");
    // The schema is the longest answer there is.
    let schema: Vec<Value> = qmp.execute("query-qmp-schema", ()).await.unwrap();
    assert!(schema.len() > 100);
    let mut events = qmp.events();
    qmp.cont().await.unwrap();
    assert_eq!(events.next().await.unwrap().name, "RESUME");
    qmp.stop().await.unwrap();
    assert_eq!(events.next().await.unwrap().name, "STOP");
    qmp.quit().await.unwrap();
    while events.next().await.is_some() {}
    assert!(qmp.query_status().await.unwrap_err().is_closed());
}
