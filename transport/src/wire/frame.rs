//! The 32-byte header before every sealed body on a lane.
//!
//! The header travels in the clear and is the associated data of the body's seal: whoever changes it, or the body, or
//! leaves out, repeats or reorders frames, breaks the next authentication. Until then its fields are only claims; the
//! length is checked against the lane's limit by [`Header::decode`], before anybody allocates.

use super::{u16_at, u32_at, u64_at};
use crate::names::{Epoch, LaneId};

pub const HEADER_BYTES: usize = 32;
/// The Poly1305 tag that follows every body; not counted in `body_bytes`.
pub const TAG_BYTES: usize = 16;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// The first frame of a lane, from the side that connected. Body: the link's id.
    LaneHello = 1,
    /// The answer to it. Empty body.
    LaneAccepted = 2,
    /// One chunk of a session. Body: its payload.
    Chunk = 3,
    /// Nothing: it fills the path while there is nothing to send. Body: zeros, thrown away by the receiver.
    Padding = 4,
}

/// A frame's header. `session`, `seq` and `after` are 0 in frames other than chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: FrameType,
    pub lane: LaneId,
    pub epoch: Epoch,
    pub session: u32,
    /// Bytes of the body, without the tag.
    pub body_bytes: u32,
    pub seq: u64,
    pub after: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame type {0} is unknown")]
    Type(u8),
    #[error("frame flags {0:#04x} are unknown")]
    Flags(u8),
    #[error("a frame of {bytes} bytes, the limit is {limit}")]
    TooLong { bytes: u32, limit: u32 },
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.kind as u8;
        out[2..4].copy_from_slice(&self.lane.0.to_le_bytes());
        out[4..8].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.session.to_le_bytes());
        out[12..16].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.after.to_le_bytes());
        out
    }

    /// Refuses bodies longer than `limit_bytes`.
    pub fn decode(bytes: &[u8; HEADER_BYTES], limit_bytes: u32) -> Result<Self, FrameError> {
        let kind = match bytes[0] {
            1 => FrameType::LaneHello,
            2 => FrameType::LaneAccepted,
            3 => FrameType::Chunk,
            4 => FrameType::Padding,
            other => return Err(FrameError::Type(other)),
        };
        if bytes[1] != 0 {
            return Err(FrameError::Flags(bytes[1]));
        }
        let body_bytes = u32_at(bytes, 12);
        if body_bytes > limit_bytes {
            return Err(FrameError::TooLong { bytes: body_bytes, limit: limit_bytes });
        }
        Ok(Self {
            kind,
            lane: LaneId(u16_at(bytes, 2)),
            epoch: Epoch(u32_at(bytes, 4)),
            session: u32_at(bytes, 8),
            body_bytes,
            seq: u64_at(bytes, 16),
            after: u64_at(bytes, 24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: Header = Header {
        kind: FrameType::Chunk,
        lane: LaneId(0x0102),
        epoch: Epoch(0x0304_0506),
        session: 0x0708_090a,
        body_bytes: 0x0001_0c0d,
        seq: 0x0e0f_1011_1213_1415,
        after: 0x1617_1819_1a1b_1c1d,
    };

    #[test]
    fn the_header_has_its_documented_bytes() {
        #[rustfmt::skip]
        let golden = [
            3, 0, 0x02, 0x01, 0x06, 0x05, 0x04, 0x03,
            0x0a, 0x09, 0x08, 0x07, 0x0d, 0x0c, 0x01, 0x00,
            0x15, 0x14, 0x13, 0x12, 0x11, 0x10, 0x0f, 0x0e,
            0x1d, 0x1c, 0x1b, 0x1a, 0x19, 0x18, 0x17, 0x16,
        ];
        assert_eq!(SAMPLE.encode(), golden);
        assert_eq!(Header::decode(&golden, u32::MAX), Ok(SAMPLE));
    }

    #[test]
    fn padding_has_its_documented_bytes() {
        let header = Header { kind: FrameType::Padding, session: 0, seq: 0, after: 0, ..SAMPLE };
        let mut golden = [0; HEADER_BYTES];
        golden[..8].copy_from_slice(&[4, 0, 0x02, 0x01, 0x06, 0x05, 0x04, 0x03]);
        golden[12..16].copy_from_slice(&[0x0d, 0x0c, 0x01, 0x00]);
        assert_eq!(header.encode(), golden);
        assert_eq!(Header::decode(&golden, u32::MAX), Ok(header));
    }

    #[test]
    fn a_long_body_is_refused_before_anything_is_allocated() {
        let bytes = SAMPLE.encode();
        let limit = SAMPLE.body_bytes - 1;
        assert_eq!(
            Header::decode(&bytes, limit),
            Err(FrameError::TooLong { bytes: SAMPLE.body_bytes, limit })
        );
    }

    proptest! {
        #[test]
        fn a_header_that_decodes_is_the_one_that_was_encoded(bytes: [u8; HEADER_BYTES], kind in 0u8..6) {
            let mut bytes = bytes;
            bytes[0] = kind;
            bytes[1] &= 1;
            if let Ok(header) = Header::decode(&bytes, 1 << 20) {
                prop_assert!(header.body_bytes <= 1 << 20);
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn every_header_survives_its_bytes(lane: u16, epoch: u32, session: u32, body_bytes: u32, seq: u64, after: u64) {
            for kind in [FrameType::LaneHello, FrameType::LaneAccepted, FrameType::Chunk, FrameType::Padding] {
                let header = Header { kind, lane: LaneId(lane), epoch: Epoch(epoch), session, body_bytes, seq, after };
                prop_assert_eq!(Header::decode(&header.encode(), u32::MAX), Ok(header));
            }
        }
    }
}
