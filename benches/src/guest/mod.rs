//! The test guest: a bare-metal program under a real QEMU, watched from outside.
