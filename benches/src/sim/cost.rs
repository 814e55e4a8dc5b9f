//! What encoding a chunk takes.

use std::time::Duration;

use hikyaku_engine::codec::Method;

const ZSTD_LEVELS: usize = Method::ZSTD_LEVELS.len();

/// How fast one worker is. The encoding itself is done for real; only its time is modelled, so that a run does not depend on the machine.
#[derive(Debug, Clone)]
pub struct EncodeSpeed {
    /// Every page: read, compared, searched for a delta, copied. Default 5000 MB/s, `cargo lab bench pipeline`.
    pub pages_bytes_per_s: f64,
    /// What is compressed, besides, by method. Defaults of text-like pages: 400, then 490, 335, 270, 220 and 90 MB/s, the same command.
    pub lz4_bytes_per_s: f64,
    pub zstd_bytes_per_s: [f64; ZSTD_LEVELS],
}

impl Default for EncodeSpeed {
    fn default() -> Self {
        EncodeSpeed {
            pages_bytes_per_s: 5000e6,
            lz4_bytes_per_s: 400e6,
            zstd_bytes_per_s: [490e6, 335e6, 270e6, 220e6, 90e6],
        }
    }
}

impl EncodeSpeed {
    /// The same for every method, all included.
    pub fn flat(bytes_per_s: f64) -> Self {
        EncodeSpeed {
            pages_bytes_per_s: bytes_per_s,
            lz4_bytes_per_s: f64::INFINITY,
            zstd_bytes_per_s: [f64::INFINITY; ZSTD_LEVELS],
        }
    }

    /// A worker that does a part of this.
    pub fn divided(&self, by: f64) -> Self {
        EncodeSpeed {
            pages_bytes_per_s: self.pages_bytes_per_s / by,
            lz4_bytes_per_s: self.lz4_bytes_per_s / by,
            zstd_bytes_per_s: self.zstd_bytes_per_s.map(|speed| speed / by),
        }
    }

    /// A chunk of `raw_bytes`, of which `body_bytes` went through the compressor.
    pub fn takes(&self, method: Method, raw_bytes: usize, body_bytes: usize) -> Duration {
        let compressor = match method {
            Method::Stored => f64::INFINITY,
            Method::Lz4 => self.lz4_bytes_per_s,
            Method::Zstd(level) => {
                let at = Method::ZSTD_LEVELS.iter().position(|known| *known == level);
                at.and_then(|at| self.zstd_bytes_per_s.get(at)).copied().unwrap_or(f64::INFINITY)
            }
        };
        let pages_s = (raw_bytes + PER_CHUNK_BYTES) as f64 / self.pages_bytes_per_s;
        Duration::from_secs_f64(pages_s + body_bytes as f64 / compressor)
    }
}

/// A chunk of nothing but records takes as long as a page.
const PER_CHUNK_BYTES: usize = 4096;
