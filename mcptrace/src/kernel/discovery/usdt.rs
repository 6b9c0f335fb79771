//! Where the arguments of a USDT probe are, as the compiler wrote it into the note.

use mcptrace_wire::{UsdtArgument, UsdtPlace};

use super::Argument;
use crate::kernel::arch;

/// Decodes `8@%rdi -4@-20(%rbp)`: size in bytes (negative when signed, `f` behind it for floating point) and operand.
pub fn arguments(specification: &str) -> Vec<Argument> {
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

/// An argument that is nowhere, or that cannot be read.
const UNKNOWN: UsdtArgument = UsdtArgument {
    number: 0,
    base_mask: 0,
    index_mask: 0,
    register: 0,
    index: 0,
    shift: 0,
    size: 0,
    in_memory: 0,
    unknown: 1,
};

/// A place with its arguments; those beyond what a place can have are left out.
pub fn place(arguments: &[Argument]) -> UsdtPlace {
    UsdtPlace { arguments: std::array::from_fn(|index| arguments.get(index).map_or(UNKNOWN, operand)) }
}

/// Where an argument is, by its operand (`%rdi`, `$5`, `-20(%rbp)`, `8(%rax,%rcx,4)`; `x1`, `[sp, 40]`). Operands that name a symbol
/// (`counter(%rip)`) cannot be read: the note does not say where the symbol is.
fn operand(argument: &Argument) -> UsdtArgument {
    let size = argument.size.unwrap_or_default() as u8;
    let text = argument.operand.as_deref().unwrap_or_default().trim();
    let float = argument.type_name.starts_with("float");
    let found = if float || !matches!(size, 1 | 2 | 4 | 8) { None } else { located(text) };
    found.map_or(UNKNOWN, |found| UsdtArgument { size, ..found })
}

fn located(text: &str) -> Option<UsdtArgument> {
    let constant = |number| UsdtArgument { number, ..UsdtArgument::default() };
    if let Some(number) = text.strip_prefix('$') {
        return whole(number).map(constant);
    }
    if let Some(register) = register(text) {
        return Some(UsdtArgument { register, base_mask: !0, ..UsdtArgument::default() });
    }
    match text.strip_suffix(')') {
        Some(rest) => x86_memory(rest),
        None => arm_memory(text).or_else(|| whole(text).map(constant)),
    }
}

/// `-20(%rbp`, `(%rax,%rcx,4`.
fn x86_memory(text: &str) -> Option<UsdtArgument> {
    let (number, inside) = text.split_once('(')?;
    let number = if number.is_empty() { 0 } else { whole(number)? };
    let mut parts = inside.split(',').map(str::trim);
    let base = register(parts.next()?)?;
    let memory = UsdtArgument { number, register: base, base_mask: !0, in_memory: 1, ..UsdtArgument::default() };
    let Some(index) = parts.next() else { return Some(memory) };
    let scale: u32 = parts.next().map_or(Some(1), |scale| scale.parse().ok())?;
    let shift = [1, 2, 4, 8].iter().position(|known| *known == scale)? as u8;
    Some(UsdtArgument { index: register(index)?, shift, index_mask: !0, ..memory })
}

/// `[sp, 40]`, `[x29]`.
fn arm_memory(text: &str) -> Option<UsdtArgument> {
    let inside = text.strip_prefix('[')?.strip_suffix(']')?;
    let (base, number) = inside.split_once(',').unwrap_or((inside, "0"));
    let number = whole(number.trim().trim_start_matches('#'))?;
    let register = register(base.trim())?;
    Some(UsdtArgument { number, register, base_mask: !0, in_memory: 1, ..UsdtArgument::default() })
}

fn whole(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse::<u64>().ok()?,
    };
    Some((number as i64).wrapping_mul(sign))
}

fn register(name: &str) -> Option<u16> {
    arch::register(name)
}

/// A place as it lies in a map.
pub fn bytes(place: &UsdtPlace) -> Vec<u8> {
    let of = |argument: &UsdtArgument| {
        let UsdtArgument { number, base_mask, index_mask, register, index, shift, size, in_memory, unknown } =
            *argument;
        let mut bytes = [number as u64, base_mask, index_mask].map(u64::to_ne_bytes).concat();
        bytes.extend([register, index].map(u16::to_ne_bytes).concat());
        bytes.extend([shift, size, in_memory, unknown]);
        bytes
    };
    place.arguments.iter().flat_map(of).collect()
}

/// An argument's value, cut to its size and sign.
pub fn cut(value: u64, size: u32, signed: bool) -> i128 {
    let bits = (size * 8).clamp(8, 64);
    let shifted = value << (64 - bits);
    if signed { i128::from((shifted as i64) >> (64 - bits)) } else { i128::from(shifted >> (64 - bits)) }
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

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn operands_are_located() {
        let of = |specification: &str| operand(&arguments(specification)[0]);
        // Offsets in struct pt_regs (arch/x86/include/asm/ptrace.h): di 112, bp 32, ax 80, cx 88.
        let whole = of("8@%rdi");
        assert_eq!((whole.register, whole.base_mask, whole.in_memory, whole.unknown), (112, u64::MAX, 0, 0));
        assert_eq!((of("-4@%edi").register, of("1@%dil").register, of("2@%r9w").register), (112, 112, 64));
        let slot = of("-4@-20(%rbp)");
        assert_eq!((slot.in_memory, slot.register, slot.number, slot.index_mask), (1, 32, -20, 0));
        let item = of("8@8(%rax,%rcx,4)");
        assert_eq!((item.register, item.index, item.shift, item.index_mask, item.number), (80, 88, 2, u64::MAX, 8));
        let constant = of("-4@$-5");
        assert_eq!((constant.base_mask, constant.number, constant.unknown), (0, -5, 0));
        for unknown in ["8@counter(%rip)", "8f@%xmm0", "8@%xmm0", "16@%rax", "8@(%rax,%rcx,3)", "8@(%nothing)"] {
            assert_eq!(of(unknown), UNKNOWN, "{unknown}");
        }
    }

    #[test]
    fn a_place_has_the_size_of_the_wire() {
        assert_eq!(bytes(&UsdtPlace::default()).len(), size_of::<UsdtPlace>());
    }

    #[test]
    fn values_are_cut_to_size_and_sign() {
        assert_eq!((cut(0xffff_fffe, 4, true), cut(0xffff_fffe, 4, false)), (-2, 0xffff_fffe));
        assert_eq!((cut(u64::MAX, 8, true), cut(u64::MAX, 8, false)), (-1, i128::from(u64::MAX)));
        assert_eq!((cut(0x1_80, 1, true), cut(0x1_80, 1, false)), (-128, 128));
    }
}
