//! The answer to a source in doubt: what the records say, and nothing that they do not.

use crate::daemon::Daemon;
use crate::protocol::{Answer, Ask, Verdict};
use crate::records::{Phase, Record, RecordError};

/// Answers from the records. A migration of this incarnation that never came to Starting, and is not under way, is refused
/// for good, durably, before that is said: a later GO finds it refused.
pub async fn answer(daemon: &Daemon, peer: &str, ask: &Ask) -> Result<Answer, RecordError> {
    if ask.incarnation != daemon.records.incarnation() {
        return Ok(Answer::Unknown);
    }
    let Some(record) = daemon.records.read(ask.migration)? else {
        if daemon.is_receiving(ask.migration) {
            return Ok(Answer::Pending);
        }
        let why = "the guest was let go, but that never came here".to_owned();
        daemon.records.write(&Record { why: why.clone(), ..Record::refused(ask.migration, peer) }).await?;
        return Ok(Answer::Verdict(Verdict::Refused { why }));
    };
    // A record of another peer's migration, or of one that went the other way, says nothing about this one.
    if record.peer != peer {
        return Ok(Answer::Unknown);
    }
    Ok(match record.phase {
        Phase::Starting => Answer::Pending,
        Phase::Arrived if record.run => Answer::Verdict(Verdict::Running),
        Phase::Arrived => Answer::Verdict(Verdict::Paused),
        Phase::Refused => Answer::Verdict(Verdict::Refused { why: record.why }),
        Phase::Stopped | Phase::Ceded | Phase::Moved | Phase::Kept => Answer::Unknown,
    })
}
