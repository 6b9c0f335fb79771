//! What a program may read of memory while the operator reveals no more: names of things, not what programs keep to themselves. Pure.
//!
//! Nobody can tell from bpftrace's output which of it was a file's name and which a password, so it is told from the program. A text is
//! read where a field holds one that native probes show too; a pointer is followed where the kernel's own types say what is there.
//! Whatever would make a text of any other memory is refused, with the kind of secrets that the operator would have to reveal.

use super::{
    Fault,
    lexer::Token,
    parser::{CAST, How, Probe, Read, Script, Shape},
    rules::{is_of_kernel, is_of_programs},
};
use crate::secrets::{Reveals, Secret};

/// Fields of tracepoints and of the kernel's structs that hold the name of a thing.
const NAMES: &[&str] = &[
    "action",
    "child_comm",
    "comm",
    "dev",
    "dev_name",
    "devname",
    "dir_name",
    "dirname",
    "disk_name",
    "driver",
    "dst_path",
    "event",
    "filename",
    "fname",
    "fstype",
    "func",
    "function",
    "ifname",
    "linkname",
    "module",
    "name",
    "new_name",
    "newcomm",
    "newname",
    "old_name",
    "oldcomm",
    "oldname",
    "parent_comm",
    "path",
    "pathname",
    "put_old",
    "new_root",
    "queue",
    "specialfile",
    "symname",
    "target_comm",
    "type",
    "uname",
    "workqueue",
];
/// Arrays inside of structs whose elements are addresses of networks or numbers of a call: the kernel's are no pointers.
const ARRAYS: &[&str] = &[
    "args",
    "daddr",
    "daddr_v6",
    "in6_u",
    "saddr",
    "saddr_v6",
    "u6_addr16",
    "u6_addr32",
    "u6_addr8",
    "s6_addr",
    "s6_addr32",
];
/// Where the kernel keeps the places of a process's arguments and environment.
const PLACES: &[&str] = &["arg_start", "arg_end", "env_start", "env_end"];
/// Texts that stand inside of [`OBJECTS`] themselves: what a pointer that is not one to such an object points to would be shown as text.
/// The name of a task, sixteen bytes far behind its beginning, is not among them: too much is told by it.
const TEXTS: &[&str] = &["buf", "cb", "d_iname", "d_shortname", "iname"];
/// What gives the address of a variable of the kernel.
const SYMBOLS: &[&str] = &["kaddr", "percpu_kaddr"];
/// Arguments of connect and bind, and what they may be taken for.
const ADDRESSES: &[&str] = &["uservaddr", "umyaddr"];
const SOCKETS: &[&str] = &["sockaddr", "sockaddr_in", "sockaddr_in6", "sockaddr_un"];

/// Objects of the kernel that what a hook is given may be taken for. None begins with a text, which a pointer to memory of a program
/// (a buffer of `vfs_read`) taken for it would show.
const OBJECTS: &[&str] = &[
    "address_space",
    "bio",
    "block_device",
    "cfs_rq",
    "cgroup",
    "cred",
    "dentry",
    "file",
    "filename",
    "folio",
    "hrtimer",
    "inet_connection_sock",
    "inet_request_sock",
    "inet_sock",
    "inode",
    "iov_iter",
    "irq_desc",
    "irqaction",
    "kiocb",
    "kmem_cache",
    "linux_binprm",
    "mm_struct",
    "mount",
    "msghdr",
    "net",
    "nsproxy",
    "page",
    "path",
    "pid",
    "qstr",
    "request",
    "request_queue",
    "request_sock",
    "rq",
    "sched_entity",
    "scsi_cmnd",
    "signal_struct",
    "sk_buff",
    "sock",
    "sock_common",
    "socket",
    "task_struct",
    "tcp_request_sock",
    "tcp_sock",
    "timer_list",
    "udp_sock",
    "unix_sock",
    "vfsmount",
    "vm_area_struct",
    "work_struct",
];

/// Refuses the first place where a program would read what is not revealed.
pub(super) fn check(script: &Script<'_>, reveals: Reveals) -> Result<(), Fault> {
    let look = Look { script, reveals };
    script.reads.iter().try_for_each(|read| look.at(read))
}

struct Look<'a> {
    script: &'a Script<'a>,
    reveals: Reveals,
}

impl Look<'_> {
    fn at(&self, read: &Read<'_>) -> Result<(), Fault> {
        let probe = read.probe.and_then(|index| self.script.probes.get(index));
        let hooks = probe.map_or(&[][..], |probe| probe.hooks.as_slice());
        // What stands before all probes is read as if it could be anywhere.
        let kinds =
            if hooks.is_empty() { vec![Secret::Memory] } else { hooks.iter().map(|hook| kind(hook, read)).collect() };
        let hidden = kinds.into_iter().find(|kind| !self.reveals.shows(*kind));
        match hidden {
            Some(kind) if !self.is_known(read, probe) => Err(refused(read, kind)),
            _ => Ok(()),
        }
    }

    /// Whether it is known what is read there, and that it is no secret.
    fn is_known(&self, read: &Read<'_>, probe: Option<&Probe<'_>>) -> bool {
        let hooks = probe.map_or(&[][..], |probe| probe.hooks.as_slice());
        let programs = hooks.iter().any(|hook| is_of_programs(hook.text));
        let kernel = hooks.iter().all(|hook| is_of_kernel(hook.text) && !is_call(hook.text));
        match read.how {
            // `args->buf` is a number.
            How::Field(name, of) => {
                let is_argument = of.root == "args" && of.field.is_empty();
                !PLACES.contains(&name) && (is_argument || !TEXTS.contains(&name))
            }
            How::Call("str", shape) => !programs && self.is_name(&shape),
            How::Definition | How::Call(..) => false,
            How::Star(shape, times) => times == 1 && SYMBOLS.contains(&shape.root) && shape.field.is_empty(),
            How::Index(shape) => ARRAYS.contains(&shape.field),
            How::Cast(target, shape) => self.is_known_cast(target, &shape, kernel, programs),
        }
    }

    /// Numbers stay numbers; what the kernel hands to a hook may be taken for an object of its own. What was stored or reckoned may not:
    /// bpftrace reads whatever memory a number points to, that of programs too.
    fn is_known_cast(&self, target: &str, shape: &Shape<'_>, kernel: bool, programs: bool) -> bool {
        let Some((base, _)) = target.split_once('*') else {
            return !["string", "buffer"].iter().any(|text| target.starts_with(text));
        };
        if shape.field.is_empty() && SYMBOLS.contains(&shape.root) {
            return true;
        }
        let Some(name) = base.trim_end().strip_prefix("struct").map(str::trim) else { return false };
        if shape.field.is_empty() && shape.root == "curtask" {
            return !programs && name == "task_struct";
        }
        let of_address = shape.root == "args" && ADDRESSES.contains(&shape.field) && SOCKETS.contains(&name);
        (kernel && OBJECTS.contains(&name) && self.is_handed_over(shape)) || (!programs && of_address)
    }

    /// What a hook is given, or what has never been set to anything else.
    fn is_handed_over(&self, shape: &Shape<'_>) -> bool {
        if !shape.root.starts_with('$') {
            return is_given(shape);
        }
        let mut values = self.script.assigned.iter().filter(|(name, _)| *name == shape.root).peekable();
        let is_given = |value: &Shape<'_>| is_given(value) || (value.root == CAST && value.field.is_empty());
        shape.field.is_empty() && !shape.indexed && values.peek().is_some() && values.all(|(_, value)| is_given(value))
    }

    /// A field with a name in it, or what has never been set to anything else.
    fn is_name(&self, shape: &Shape<'_>) -> bool {
        let by_field = |shape: &Shape<'_>| !shape.indexed && NAMES.contains(&shape.field);
        if !shape.field.is_empty() || !shape.root.starts_with(['$', '@']) {
            return by_field(shape);
        }
        let mut values = self.script.assigned.iter().filter(|(name, _)| *name == shape.root).peekable();
        values.peek().is_some() && values.all(|(_, value)| by_field(value))
    }
}

/// The kind of what is read at a hook, where it is not known to be harmless.
fn kind(hook: &Token<'_>, read: &Read<'_>) -> Secret {
    let (How::Call(_, shape) | How::Index(shape)) = read.how else {
        return if is_of_programs(hook.text) { Secret::Texts } else { Secret::Memory };
    };
    let starts = ["sys_enter_execve", "sys_enter_execveat"];
    let of_exec = hook.text.rsplit_once("syscalls:").is_some_and(|(_, name)| starts.contains(&name));
    if of_exec && shape.root == "args" && shape.field == "argv" {
        Secret::Arguments
    } else if is_of_programs(hook.text) {
        Secret::Texts
    } else {
        Secret::Memory
    }
}

/// Whether what a hook is about is the memory of the program that makes a system call.
fn is_call(hook: &str) -> bool {
    let group = hook.split(':').nth(1).unwrap_or_default();
    group.contains("syscalls") || group.contains('*')
}

/// `args->skb`, `arg0`, `retval`: what the kernel hands to a hook. `args->skb->data` is what stands in that, the text of a packet.
fn is_given(shape: &Shape<'_>) -> bool {
    let is_argument = shape.root.strip_prefix("arg").is_some_and(|rest| rest.parse::<u8>().is_ok());
    match shape.field {
        "" => is_argument || shape.root == "retval",
        _ => shape.root == "args" && !shape.indexed && !shape.deep,
    }
}

fn refused(read: &Read<'_>, kind: Secret) -> Fault {
    let what = match read.how {
        How::Call("str", _) => "str() of what is not a field with a name in it is refused".to_owned(),
        How::Call(name, _) => format!("{name}() is refused"),
        How::Star(..) => "`*` is refused".to_owned(),
        How::Index(_) => "an element of what may be a pointer is refused".to_owned(),
        How::Cast(..) => "this cast is refused".to_owned(),
        How::Field(name, _) => format!("the field `{name}` is refused"),
        How::Definition => "a struct of the program's own is refused".to_owned(),
    };
    Fault::policy(read.at, format!("{what}: it reads memory that may hold secrets")).remedy(format!(
        "read names by fields (str(args.filename)), structs by the kernel's types, or use a native probe; the operator allows it with \
         secrets.reveal = [\"{}\"]",
        kind.word()
    ))
}
