//! Where the arguments of a USDT probe are, as the compiler wrote it into the note.

use super::Argument;

/// Decodes `8@%rdi -4@-20(%rbp)`: size in bytes (negative when signed, `f` behind it for floating point) and operand.
pub(super) fn arguments(specification: &str) -> Vec<Argument> {
    let mut arguments: Vec<Argument> = Vec::new();
    for word in specification.split_whitespace() {
        match start(word) {
            Some(argument) => arguments.push(argument),
            // Operands of some architectures have blanks: `8@[sp, 40]`.
            None => continue_operand(arguments.last_mut(), word),
        }
    }
    for (at, argument) in arguments.iter_mut().enumerate() {
        argument.name = format!("arg{at}");
    }
    arguments
}

fn start(word: &str) -> Option<Argument> {
    let (size, operand) = word.split_once('@')?;
    let (digits, float) = size.strip_suffix('f').map_or((size, false), |digits| (digits, true));
    let size: i32 = digits.parse().ok().filter(|size: &i32| matches!(size.unsigned_abs(), 1 | 2 | 4 | 8 | 16))?;
    let type_name = match (float, size < 0) {
        (true, _) => format!("float{}", size.unsigned_abs() * 8),
        (false, signed) => format!("{}{}", if signed { "s" } else { "u" }, size.unsigned_abs() * 8),
    };
    Some(Argument {
        type_name,
        size: Some(size.unsigned_abs()),
        signed: Some(size < 0),
        operand: Some(operand.to_owned()),
        ..Argument::default()
    })
}

fn continue_operand(last: Option<&mut Argument>, word: &str) {
    if let Some(operand) = last.and_then(|last| last.operand.as_mut()) {
        operand.push(' ');
        operand.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(specification: &str) -> Vec<(String, u32, String)> {
        let one = |each: Argument| (each.type_name, each.size.unwrap(), each.operand.unwrap());
        arguments(specification).into_iter().map(one).collect()
    }

    #[test]
    fn sizes_signs_and_operands() {
        assert_eq!(
            decoded("8@%rdi -4@-20(%rbp) 4@$5 8@foo+8(%rip)"),
            [
                ("u64".into(), 8, "%rdi".into()),
                ("s32".into(), 4, "-20(%rbp)".into()),
                ("u32".into(), 4, "$5".into()),
                ("u64".into(), 8, "foo+8(%rip)".into()),
            ]
        );
        assert_eq!(arguments("1@%al 2@%bx")[1].name, "arg1");
    }

    #[test]
    fn operands_with_blanks_stay_whole() {
        assert_eq!(decoded("8@[sp, 40] -4@x1"), [("u64".into(), 8, "[sp, 40]".into()), ("s32".into(), 4, "x1".into())]);
        assert_eq!(decoded("8f@%xmm0"), [("float64".into(), 8, "%xmm0".into())]);
    }

    #[test]
    fn nonsense_is_no_argument() {
        for specification in ["", "   ", "x", "9@%rax", "@", "99999999999@%rax"] {
            assert_eq!(arguments(specification), [], "{specification}");
        }
    }
}
