//! Names of error numbers.

/// The symbolic name of an errno (include/uapi/asm-generic/errno-base.h and errno.h), its number where it has none.
pub fn name(errno: i32) -> String {
    syscalls::Errno::new(errno).name().map_or_else(|| format!("E{errno}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    #[test]
    fn errors_have_their_usual_names() {
        assert_eq!(super::name(libc::ENOENT), "ENOENT");
        assert_eq!(super::name(libc::EACCES), "EACCES");
        assert_eq!(super::name(4000), "E4000");
    }
}
