//! Whether the guest sleeps (S3): its QEMU does not say so any more when it has come to the end of its stream, which it then does by itself.

use super::guest::SourceGuest;
use hikyaku_qemu::qmp::Events;

/// See the module.
pub struct Sleep {
    events: Events,
    asleep: bool,
}

impl Sleep {
    /// It is awake.
    pub fn begin(guest: &SourceGuest) -> Sleep {
        Sleep { events: guest.qmp.events(), asleep: false }
    }

    /// As far as its QEMU has said.
    pub fn now(&mut self) -> bool {
        while let Some(event) = self.events.try_next() {
            match event.name.as_str() {
                "SUSPEND" => self.asleep = true,
                "WAKEUP" => self.asleep = false,
                _ => {}
            }
        }
        self.asleep
    }
}
