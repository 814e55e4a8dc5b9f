//! The numbers of the stream's format. All integers on the wire are big-endian.

pub const MAGIC: u32 = 0x5145_564d;
pub const VERSION: u32 = 3;
pub const HEADER_BYTES: usize = 8;

/// First bytes of streams that are not the plain format.
pub const MULTIFD_MAGIC: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
pub const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

/// First byte of an item.
pub mod item {
    pub const EOF: u8 = 0x00;
    pub const START: u8 = 0x01;
    pub const PART: u8 = 0x02;
    pub const END: u8 = 0x03;
    pub const FULL: u8 = 0x04;
    pub const SUBSECTION: u8 = 0x05;
    pub const VMDESCRIPTION: u8 = 0x06;
    pub const CONFIGURATION: u8 = 0x07;
    pub const COMMAND: u8 = 0x08;
    pub const FOOTER: u8 = 0x7e;
}

/// Type byte and section id.
pub const SECTION_REF_BYTES: usize = 5;
/// Footer byte and section id.
pub const FOOTER_BYTES: usize = 5;

pub const RAM_NAME: &[u8] = b"ram";
pub const RAM_VERSION: u32 = 4;

/// Low bits of a RAM record's first word; the rest is the offset in the block.
pub mod ram {
    pub const ZERO: u64 = 0x002;
    pub const MEM_SIZE: u64 = 0x004;
    pub const PAGE: u64 = 0x008;
    pub const EOS: u64 = 0x010;
    pub const CONTINUE: u64 = 0x020;
    pub const XBZRLE: u64 = 0x040;
    pub const HOOK: u64 = 0x080;
    pub const COMPRESS: u64 = 0x100;
    pub const MULTIFD_FLUSH: u64 = 0x200;
    pub const FLAGS: u64 = 0xfff;

    pub const ZERO_SAME: u64 = ZERO | CONTINUE;
    pub const PAGE_SAME: u64 = PAGE | CONTINUE;

    /// Who uses records of a kind that is not read here.
    pub fn foreign_kind(flags: u64) -> &'static str {
        match flags & !CONTINUE {
            XBZRLE => " (capability xbzrle)",
            HOOK => " (RDMA)",
            COMPRESS => " (capability compress)",
            MULTIFD_FLUSH => " (capability multifd)",
            _ => "",
        }
    }
}
pub const WORD_BYTES: usize = 8;
/// The word EOS and the footer, which close every section of RAM.
pub const RAM_CLOSE_BYTES: usize = WORD_BYTES + FOOTER_BYTES;
/// Encoding byte of an XBZRLE record.
pub const XBZRLE_ENCODING: u8 = 0x01;

pub mod command {
    pub const OPEN_RETURN_PATH: u16 = 1;
    pub const PING: u16 = 2;
    pub const POSTCOPY_ADVISE: u16 = 3;
    pub const SWITCHOVER_START: u16 = 11;
}

/// What POSTCOPY_ADVISE says where the guest's RAM may come behind it.
pub const POSTCOPY_TERMS_BYTES: u16 = 16;

/// Whether this is a command that may stand in a precopy stream before RAM's END, with its exact length.
/// The others either begin postcopy or COLO, or have bytes outside their length (PACKAGED).
pub fn is_precopy_command(cmd: u16, len: u16) -> bool {
    match cmd {
        command::OPEN_RETURN_PATH | command::SWITCHOVER_START => len == 0,
        command::PING => len == 4,
        command::POSTCOPY_ADVISE => len == 0,
        _ => false,
    }
}

/// A position in a slice that may end too early: every read answers `None` then.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    buf: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(buf: &'a [u8]) -> Self {
        Self { buf, pos: 0 }
    }

    pub fn pos(&self) -> usize {
        self.pos
    }

    #[inline(always)]
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let rest = self.buf.get(self.pos..)?;
        let out = rest.get(..n)?;
        self.pos += n;
        Some(out)
    }

    #[inline(always)]
    pub fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let out = self.buf.get(self.pos..)?.first_chunk::<N>()?;
        self.pos += N;
        Some(out)
    }

    #[inline(always)]
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| *b)
    }

    pub fn be16(&mut self) -> Option<u16> {
        self.array().map(|b| u16::from_be_bytes(*b))
    }

    pub fn be32(&mut self) -> Option<u32> {
        self.array().map(|b| u32::from_be_bytes(*b))
    }

    #[inline(always)]
    pub fn be64(&mut self) -> Option<u64> {
        self.array().map(|b| u64::from_be_bytes(*b))
    }

    /// A length byte and that many bytes.
    pub fn counted(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.bytes(usize::from(n))
    }
}
