//! Where the tail ends. The socket stays open for the return path, so its end is no sign, and device state
//! cannot be delimited; but QEMU ends with its own description:
//!
//! ```text
//!   … device sections … | 7e be32 id | 00 EOF | 06 be32 len | { "page_size": …, "devices": [ … ] }
//! ```
//!
//! [`TailScanner`] looks for that shape: the last section's footer, EOF, the description's mark and length, and a
//! JSON object that is whole exactly where the received bytes end. It holds no byte of the tail and looks at
//! each once. JSON as QEMU writes it has no control characters, so a description cannot hide inside another.
//!
//! What it finds is a **hint of when, never of what**. A guest can, with effort, place bytes of this shape in
//! a device's state. So whoever relies on it must pass on bytes that come after it all the same: the receiving
//! QEMU finds the end by itself. The sure sign is QMP's: a command sent after RAM's end was seen is answered only
//! once everything is in the socket (`docs/qemu.md`).

use super::wire::item;

/// Larger than any description: QEMU's of a guest with hundreds of devices has a few MiB.
const MAX_DESCRIPTION_BYTES: u32 = 64 << 20;

/// footer, id, EOF, VMDESCRIPTION, length: what the shift register must hold.
const MARK_BYTES: usize = 5 + 1 + 1 + 4;

#[derive(Debug, Default)]
pub struct TailScanner {
    /// The last 16 bytes, the newest in the lowest byte.
    recent: u128,
    received: u64,
    /// Bytes from here within which a mark's length may end.
    until_len: u8,
    description: Option<Description>,
}

/// A description that may be the one that ends the tail.
#[derive(Debug)]
struct Description {
    left_bytes: u32,
    json: Json,
}

impl TailScanner {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of the tail, beginning right after the footer of RAM's END section.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.description.is_none() && self.until_len == 0 && byte != item::VMDESCRIPTION {
                let dull = bytes.iter().position(|b| *b == item::VMDESCRIPTION).unwrap_or(bytes.len());
                let (dull, rest) = bytes.split_at_checked(dull).unwrap_or((bytes, &[]));
                self.skip(dull);
                bytes = rest;
            } else {
                self.look_at(byte);
                bytes = rest;
            }
        }
    }

    fn look_at(&mut self, byte: u8) {
        /// The mark's byte and the length behind it.
        const MARK_AND_LEN_BYTES: u8 = 5;
        self.recent = self.recent << 8 | u128::from(byte);
        self.received += 1;
        if let Some(description) = &mut self.description {
            if description.push(byte) {
                return;
            }
            self.description = None;
        }
        self.until_len = self.until_len.saturating_sub(1);
        if byte == item::VMDESCRIPTION {
            self.until_len = MARK_AND_LEN_BYTES;
        }
        self.description = self.description_begins();
    }

    /// Bytes without the mark's: only the last ones can matter.
    fn skip(&mut self, dull: &[u8]) {
        let last = dull.len().saturating_sub(size_of_val(&self.recent));
        for byte in dull.get(last..).unwrap_or_default() {
            self.recent = self.recent << 8 | u128::from(*byte);
        }
        self.received += dull.len() as u64;
    }

    /// What was received ends exactly where a description does.
    pub fn complete(&self) -> bool {
        self.description.as_ref().is_some_and(|d| d.left_bytes == 0 && d.json.is_whole())
    }

    /// What was received ends as a tail without description does (machine option `suppress-vmdesc=on`): a
    /// section's footer and EOF. Device state may look the same; ask QMP before it is believed.
    pub fn could_be_complete(&self) -> bool {
        const FOOTER_AND_EOF: u128 = 1 << 48;
        let last = self.recent % FOOTER_AND_EOF;
        let empty_description = self.recent & 0xffff_ffff == 0
            && (self.recent >> 32) as u8 == item::VMDESCRIPTION
            && ends_sections(self.recent >> 40);
        self.complete()
            || empty_description
            || (self.received >= 6 && last as u8 == item::EOF && ends_sections(last))
    }

    pub fn received_bytes(&self) -> u64 {
        self.received
    }

    fn description_begins(&self) -> Option<Description> {
        let len = self.recent as u32;
        let marked = self.received >= MARK_BYTES as u64
            && (self.recent >> 32) as u8 == item::VMDESCRIPTION
            && ends_sections(self.recent >> 40);
        (marked && (1..=MAX_DESCRIPTION_BYTES).contains(&len))
            .then(|| Description { left_bytes: len, json: Json::default() })
    }
}

/// Whether the lowest six bytes are a footer, a section id, and EOF.
fn ends_sections(recent: u128) -> bool {
    /// Sections are numbered up from 0.
    const MAX_SECTION_ID: u32 = 0xff_ffff;
    recent as u8 == item::EOF
        && (recent >> 40) as u8 == item::FOOTER
        && (recent >> 8) as u32 <= MAX_SECTION_ID
}

impl Description {
    /// `false`: this is none.
    fn push(&mut self, byte: u8) -> bool {
        if self.left_bytes == 0 || !self.json.push(byte) {
            return false;
        }
        self.left_bytes -= 1;
        // Whole too early, or not whole at the end.
        self.json.is_whole() == (self.left_bytes == 0)
    }
}

/// As much of JSON as tells QEMU's description from other bytes, in constant space: printable bytes, balanced
/// brackets, strings, and the two keys that QEMU always writes at the top.
#[derive(Debug, Default)]
struct Json {
    /// Open brackets, one bit each: an object's is 1. The top one is always an object.
    stack: u64,
    depth: u32,
    started: bool,
    in_string: bool,
    escaped: bool,
    /// Bytes of the current string, for the keys.
    key: u128,
    has_page_size: bool,
    has_devices: bool,
}

impl Json {
    fn is_whole(&self) -> bool {
        self.started && self.depth == 0 && self.has_page_size && self.has_devices
    }

    fn push(&mut self, byte: u8) -> bool {
        if self.in_string {
            return self.in_string(byte);
        }
        match byte {
            b'{' => self.open(1),
            _ if !self.started => false,
            b'[' => self.open(0),
            b'}' => self.close(1),
            b']' => self.close(0),
            b'"' => {
                self.in_string = true;
                self.key = 0;
                true
            }
            b':' => {
                self.key_ended();
                true
            }
            b',' | b' ' | b'\n' | b'\r' | b'\t' | b'-' | b'+' | b'.' => true,
            _ => byte.is_ascii_alphanumeric(),
        }
    }

    fn in_string(&mut self, byte: u8) -> bool {
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.in_string = false;
            return true;
        }
        self.key = self.key << 8 | u128::from(byte);
        (0x20..0x7f).contains(&byte)
    }

    fn key_ended(&mut self) {
        if self.depth == 1 {
            self.has_page_size |= self.key == text(b"page_size");
            self.has_devices |= self.key == text(b"devices");
        }
    }

    fn open(&mut self, object: u64) -> bool {
        // Once whole, nothing may follow.
        if (self.started && self.depth == 0) || self.depth >= u64::BITS {
            return false;
        }
        self.started = true;
        self.stack = self.stack << 1 | object;
        self.depth += 1;
        true
    }

    fn close(&mut self, object: u64) -> bool {
        if self.depth == 0 || self.stack & 1 != object {
            return false;
        }
        self.stack >>= 1;
        self.depth -= 1;
        true
    }
}

fn text(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |all, byte| all << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"configuration": {"name": "a\"}]"}, "page_size": 4096, "devices": [{"n": -1.5}]}"#;

    fn tail(json: &str) -> Vec<u8> {
        let mut bytes = vec![4, 0, 0, 0, 9, 1, b'x', 1, 2, 3, 0x7e, 0, 0, 0, 9, 0, 6];
        bytes.extend_from_slice(&(json.len() as u32).to_be_bytes());
        bytes.extend_from_slice(json.as_bytes());
        bytes
    }

    /// The lengths at which the scanner said "complete".
    fn complete_at(bytes: &[u8]) -> Vec<usize> {
        let mut scanner = TailScanner::new();
        (1..=bytes.len())
            .filter(|n| {
                scanner.push(&bytes[n - 1..*n]);
                scanner.complete()
            })
            .collect()
    }

    #[test]
    fn a_tail_is_complete_at_its_last_byte_and_nowhere_before() {
        let bytes = tail(JSON);
        assert_eq!(complete_at(&bytes), [bytes.len()]);
    }

    #[test]
    fn a_byte_too_many_is_not_complete() {
        let mut bytes = tail(JSON);
        let len = bytes.len();
        bytes.push(0);
        assert_eq!(complete_at(&bytes), [len]);
    }

    #[test]
    fn a_mark_in_device_state_does_not_hide_the_real_one() {
        let mut bytes = tail("{\"page_size\": 1, \"devices\": [");
        bytes.extend_from_slice(&[0x7e, 0, 0, 0x7e]);
        bytes.extend_from_slice(&tail(JSON));
        assert_eq!(complete_at(&bytes), [bytes.len()]);
    }

    #[test]
    fn what_is_no_description_is_not_taken_for_one() {
        for json in [
            "{}",
            r#"{"page_size": 1}"#,
            r#"{"a": {"page_size": 1, "devices": []}}"#,
            r#"{"page_size": 1, "devices": [}]"#,
            r#"{"page_size": 1, "devices": []} "#,
            "[{\"page_size\": 1, \"devices\": []}]",
            "{\"page_size\": 1, \"devices\": [\u{1}]}",
        ] {
            assert_eq!(complete_at(&tail(json)), [] as [usize; 0], "{json}");
        }
    }

    #[test]
    fn without_description_the_eof_byte_could_be_the_end() {
        let bytes = tail("");
        let mut scanner = TailScanner::new();
        let could: Vec<_> = (1..=bytes.len())
            .filter(|n| {
                scanner.push(&bytes[n - 1..*n]);
                assert!(!scanner.complete());
                scanner.could_be_complete()
            })
            .collect();
        // At the EOF byte, and after an empty description.
        assert_eq!(could, [16, 21]);
    }
}
