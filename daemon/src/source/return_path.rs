//! What the peer may say to the guest's QEMU: anything but what decides about the guest.
//!
//! SHUT would let QEMU complete, SWITCHOVER_ACK would let it stop the guest by itself; a guest that QEMU stopped is started by
//! QEMU when its migration fails, wherever else it runs by then. Both are the daemon's to say. It holds nothing back:
//! whoever sends one of them is not listened to any more.

use hikyaku_qemu::return_path::{Message, Reader};

#[derive(Debug, Default)]
pub struct Guard {
    reader: Reader,
}

impl Guard {
    /// Whether QEMU may get `bytes`, the next piece of its return path; `Err` says what is wrong with them.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut decides = None;
        let read = self.reader.push(bytes, |message| match message {
            Message::Shut(_) => decides = Some("SHUT to the guest's QEMU"),
            Message::SwitchoverAck => decides = Some("SWITCHOVER_ACK to the guest's QEMU"),
            _ => {}
        });
        match (decides, read) {
            (Some(what), _) => Err(what),
            (None, Err(_)) => Err("what no QEMU says on its return path"),
            (None, Ok(())) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(messages: &[Message], piece_bytes: usize) -> Result<(), &'static str> {
        let mut bytes = Vec::new();
        messages.iter().for_each(|m| m.write(&mut bytes).unwrap());
        let mut guard = Guard::default();
        bytes.chunks(piece_bytes).try_for_each(|piece| guard.check(piece))
    }

    #[test]
    fn what_decides_about_the_guest_does_not_pass_however_it_is_cut() {
        for piece_bytes in 1..16 {
            assert_eq!(check(&[Message::Pong(1), Message::Pong(2)], piece_bytes), Ok(()));
            assert!(check(&[Message::Pong(1), Message::Shut(0)], piece_bytes).is_err());
            assert!(check(&[Message::Shut(1), Message::Pong(1)], piece_bytes).is_err());
            assert!(check(&[Message::Pong(1), Message::SwitchoverAck], piece_bytes).is_err());
        }
        assert!(Guard::default().check(&[0, 2, 0xff, 0xff]).is_err());
    }
}
