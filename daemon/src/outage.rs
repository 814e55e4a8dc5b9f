//! What an outage of the link is called, in the few words that status lines have room for.

use hikyaku_transport::Lost;

/// Why the link is down, without the peer's name: whoever shows it says that, too.
pub fn words(why: &Lost) -> String {
    match why {
        Lost::Silent { silent_for, .. } => format!("nothing came for {} s", silent_for.as_secs_f32()),
        Lost::Connection { connection, what, .. } => format!("{connection}: {what}"),
        other => other.to_string(),
    }
}
