//! What a QEMU was started with, as far as it says whose it is.

/// The guest's name in `-name guest=NAME,…` or `-name NAME,…`, of a command line as the kernel keeps it: arguments, each ended by a zero.
pub fn guest_name(command_line: &[u8]) -> Option<String> {
    let mut arguments = command_line.split(|&byte| byte == 0);
    arguments.find(|argument| matches!(*argument, b"-name" | b"--name"))?;
    let value = std::str::from_utf8(arguments.next()?).ok()?;
    options(value).enumerate().find_map(|(n, option)| match option.split_once('=') {
        Some(("guest", name)) => Some(name.to_owned()),
        None if n == 0 => Some(option),
        _ => None,
    })
}

/// The guest's UUID in `-uuid UUID`, likewise.
pub fn guest_uuid(command_line: &[u8]) -> Option<&str> {
    let mut arguments = command_line.split(|&byte| byte == 0);
    arguments.find(|argument| matches!(*argument, b"-uuid" | b"--uuid"))?;
    std::str::from_utf8(arguments.next()?).ok()
}

/// Options are parted by commas; a comma within one is written twice.
fn options(value: &str) -> impl Iterator<Item = String> {
    let mut rest = value.chars().peekable();
    std::iter::from_fn(move || {
        rest.peek()?;
        let mut option = String::new();
        while let Some(c) = rest.next() {
            match c {
                ',' if rest.next_if_eq(&',').is_none() => break,
                c => option.push(c),
            }
        }
        Some(option)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(words: &[&str]) -> Option<String> {
        let line: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        guest_name(&line)
    }

    #[test]
    fn a_qemu_says_whose_it_is() {
        let libvirt = ["/usr/bin/qemu-system-x86_64", "-name", "guest=web,debug-threads=on", "-S"];
        assert_eq!(name(&libvirt).as_deref(), Some("web"));
        assert_eq!(name(&["qemu", "-name", "debug-threads=on,guest=a,,b=c"]).as_deref(), Some("a,b=c"));
        assert_eq!(name(&["qemu", "-name", "web"]).as_deref(), Some("web"));
        assert_eq!(name(&["qemu", "-name", "process=x"]), None);
        assert_eq!(name(&["qemu", "-m", "guest=web"]), None);
        assert_eq!(name(&["qemu", "-name"]), None);
        assert_eq!(guest_name(b""), None);
        assert_eq!(guest_uuid(b"qemu\0-name\0web\0-uuid\0ae1b\0"), Some("ae1b"));
        assert_eq!(guest_uuid(b"qemu\0-uuid"), None);
        assert_eq!(guest_name(b"qemu\0-name\0\xff\0"), None);
    }
}
