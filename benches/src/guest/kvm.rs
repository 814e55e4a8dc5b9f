//! Whether this machine has KVM for a guest.

use std::fs::File;
use std::io::Error;

const DEVICE: &str = "/dev/kvm";

#[derive(Debug)]
pub enum Kvm {
    Usable,
    /// This machine has none.
    Absent,
    /// There is one, and not for this user.
    Refused(Error),
}

impl Kvm {
    pub fn probe() -> Kvm {
        match File::options().read(true).write(true).open(DEVICE) {
            Ok(_) => Kvm::Usable,
            // The node may be there with nothing behind it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => {
                Kvm::Absent
            }
            Err(error) => Kvm::Refused(error),
        }
    }
}
