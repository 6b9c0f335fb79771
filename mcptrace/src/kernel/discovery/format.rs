//! The format file of a tracepoint, `events/CATEGORY/EVENT/format` in tracefs.

use super::Argument;

/// The fields of a format file, without the `common_` ones that every event has, and its `print fmt` line.
pub(super) fn parse(text: &str) -> (Vec<Argument>, Option<String>) {
    let fields = text.lines().filter_map(field).filter(|field| !field.name.starts_with("common_")).collect();
    let print = text.lines().find_map(|line| line.strip_prefix("print fmt: "));
    (fields, print.map(str::to_owned))
}

/// One line: `field:const char * filename;\toffset:24;\tsize:8;\tsigned:0;`.
fn field(line: &str) -> Option<Argument> {
    let mut parts = line.trim().strip_prefix("field:")?.split(';').map(str::trim);
    let (type_name, name) = split_declaration(parts.next()?)?;
    let mut number = |key: &str| parts.next()?.strip_prefix(key)?.trim().parse::<u32>().ok();
    Some(Argument {
        name,
        type_name,
        offset: Some(number("offset:")?.into()),
        size: Some(number("size:")?),
        // Absent in kernels before 2.6.32.
        signed: number("signed:").map(|signed| signed != 0),
        ..Argument::default()
    })
}

/// Splits a C declaration into type and name: `char comm[16]` is a `char[16]` named `comm`.
fn split_declaration(declaration: &str) -> Option<(String, String)> {
    let (front, array) = match declaration.ends_with(']').then(|| declaration.rfind('[')).flatten() {
        Some(at) => declaration.split_at(at),
        None => (declaration, ""),
    };
    let front = front.trim_end();
    let start = front.rfind(|each: char| each.is_ascii_whitespace() || each == '*').map_or(0, |at| at + 1);
    let (type_name, name) = front.split_at(start);
    (!name.is_empty()).then(|| (format!("{}{array}", type_name.trim_end()), name.to_owned()))
}

/// Reads a format, and as what a USDT probe takes. For tests: no text may be a panic.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check(text: &str) {
    let (arguments, _) = parse(text);
    assert!(arguments.len() <= text.len());
    let arguments = super::usdt::arguments(text);
    assert!(arguments.len() <= text.len());
    let _ = super::usdt::bytes(&super::usdt::place(&arguments));
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: sys_enter_openat\nID: 782\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:const char * filename;\toffset:24;\tsize:8;\tsigned:0;\n\n\
        print fmt: \"dfd: 0x%08lx; field:x\", ((unsigned long)(REC->dfd))\n";

    #[test]
    fn no_text_is_a_panic() {
        let corpus: &[&[u8]] = &[
            b"name: sched_switch\nID: 316\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;\n\nprint fmt: \"prev_comm=%s\", REC->prev_comm\n",
            b"\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:1;\n",
            b"8@%rax -4@-8(%rbp) 1@$5 8@symbol+4(%rip) 2@(%rdi,%rsi,4) -2@[sp, 12] 4@x0",
        ];
        crate::fuzz::inputs(corpus, 20_000).for_each(|bytes| check(&String::from_utf8_lossy(&bytes)));
    }

    #[test]
    fn fields_have_type_place_and_sign() {
        let (fields, print) = parse(FORMAT);
        assert_eq!(fields.len(), 2);
        let expected = Argument {
            name: "filename".into(),
            type_name: "const char *".into(),
            offset: Some(24),
            size: Some(8),
            signed: Some(false),
            ..Argument::default()
        };
        assert_eq!(fields[1], expected);
        assert_eq!(fields[0].signed, Some(true));
        assert_eq!(print.as_deref(), Some("\"dfd: 0x%08lx; field:x\", ((unsigned long)(REC->dfd))"));
    }

    #[test]
    fn declarations_are_split_as_c_means_them() {
        for (declaration, type_name, name) in [
            ("char prev_comm[16]", "char[16]", "prev_comm"),
            ("__data_loc char[] name", "__data_loc char[]", "name"),
            ("__u8 saddr[sizeof(struct sockaddr_in6)]", "__u8[sizeof(struct sockaddr_in6)]", "saddr"),
            ("struct sock *sk", "struct sock *", "sk"),
            ("unsigned long args[6]", "unsigned long[6]", "args"),
            ("pid_t pid", "pid_t", "pid"),
        ] {
            assert_eq!(split_declaration(declaration), Some((type_name.into(), name.into())), "{declaration}");
        }
        assert_eq!(split_declaration(""), None);
    }

    #[test]
    fn a_spoilt_line_is_left_out() {
        assert_eq!(parse("field:int x; offset:a; size:4;\nfield:\nfield:int y;\n\0\nprint fmt").0, []);
    }
}
