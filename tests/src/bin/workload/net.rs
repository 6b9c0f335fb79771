//! Network traffic of known size, over loopback.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _},
    sync::Mutex,
    thread,
    time::Duration,
};

static LISTENER: Mutex<Option<TcpListener>> = Mutex::new(None);
static RECEIVER: Mutex<Option<UdpSocket>> = Mutex::new(None);

fn loopback(family: &str, port: i64) -> SocketAddr {
    let address: IpAddr = match family {
        "v4" => Ipv4Addr::LOCALHOST.into(),
        "v6" => Ipv6Addr::LOCALHOST.into(),
        other => panic!("unknown family {other}"),
    };
    (address, u16::try_from(port).unwrap()).into()
}

/// Listens; gives the port, which is below those that the kernel gives to clients (net.ipv4.ip_local_port_range).
pub(crate) fn listen(family: &str) -> Vec<i64> {
    let first = 10_007 + i64::from(std::process::id()) % 10_007;
    let mut listeners = (first..32_768).filter_map(|port| TcpListener::bind(loopback(family, port)).ok());
    let listener = listeners.next().unwrap();
    let port = listener.local_addr().unwrap().port();
    *LISTENER.lock().unwrap() = Some(listener);
    vec![port.into()]
}

/// Accepts so many connections, takes and gives so many bytes on each, and waits until the peer closes it.
pub(crate) fn serve(times: i64, takes: i64, gives: i64) {
    let listener = LISTENER.lock().unwrap();
    for _ in 0..times {
        let (mut stream, _) = listener.as_ref().unwrap().accept().unwrap();
        talk(&mut stream, 0, takes);
        talk(&mut stream, gives, 0);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}

/// Connects so often, gives and takes so many bytes on each connection, and closes it first.
pub(crate) fn connect(family: &str, port: i64, times: i64, gives: i64, takes: i64) {
    for _ in 0..times {
        let mut stream = TcpStream::connect(loopback(family, port)).unwrap();
        talk(&mut stream, gives, takes);
    }
}

/// Accepts a connection, gives its end at once, and takes so many bytes only when the peer has given its end too.
pub(crate) fn serve_late(takes: i64) {
    let listener = LISTENER.lock().unwrap();
    let (mut stream, _) = listener.as_ref().unwrap().accept().unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    while state(&stream) != CLOSE {
        thread::sleep(Duration::from_millis(1));
    }
    stream.read_exact(&mut vec![0; takes as usize]).unwrap();
}

/// Connects, waits for the end of what the peer gives, gives so many bytes, and closes.
pub(crate) fn leave(family: &str, port: i64, gives: i64) {
    let mut stream = TcpStream::connect(loopback(family, port)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    talk(&mut stream, gives, 0);
}

/// `TCP_CLOSE` (include/net/tcp_states.h).
const CLOSE: u8 = 7;

/// The first byte of `struct tcp_info` (include/uapi/linux/tcp.h).
fn state(stream: &TcpStream) -> u8 {
    let (mut state, mut length) = (0_u8, 1);
    // SAFETY: one byte has room.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    state
}

fn talk(stream: &mut TcpStream, gives: i64, takes: i64) {
    stream.write_all(&vec![7; gives as usize]).unwrap();
    stream.read_exact(&mut vec![0; takes as usize]).unwrap();
}

/// Connects to where nobody listens.
pub(crate) fn refused(family: &str, port: i64, times: i64) {
    for _ in 0..times {
        let error = TcpStream::connect(loopback(family, port)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

/// Binds a UDP socket to receive by; gives the port.
pub(crate) fn bind(family: &str) -> Vec<i64> {
    let socket = UdpSocket::bind(loopback(family, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    *RECEIVER.lock().unwrap() = Some(socket);
    vec![port.into()]
}

/// Receives so many datagrams of so many bytes.
pub(crate) fn receive(times: i64, bytes: i64) {
    let socket = RECEIVER.lock().unwrap();
    let mut room = vec![0; 65_536];
    for _ in 0..times {
        assert_eq!(socket.as_ref().unwrap().recv(&mut room).unwrap() as i64, bytes);
    }
}

/// Sends so many datagrams of so many bytes from one socket that is not connected.
pub(crate) fn send(family: &str, port: i64, times: i64, bytes: i64) {
    let socket = UdpSocket::bind(loopback(family, 0)).unwrap();
    for _ in 0..times {
        assert_eq!(socket.send_to(&vec![7; bytes as usize], loopback(family, port)).unwrap() as i64, bytes);
    }
}

/// Sends so many packets of a protocol that nobody speaks to this machine itself: 253 is for experiments (RFC 3692).
pub(crate) fn send_unknown(times: i64) {
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    // An IPv4 header (RFC 791) with nothing behind it. The kernel fills in its length, checksum and source.
    let mut header = [0_u8; 20];
    (header[0], header[8], header[9]) = (0x45, 64, 253);
    header[16..].copy_from_slice(&[127, 0, 0, 1]);
    // SAFETY: header and address are good for the calls.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW);
        assert!(socket >= 0);
        for _ in 0..times {
            let (address, length) = ((&raw const to).cast(), size_of_val(&to) as u32);
            assert_eq!(libc::sendto(socket, header.as_ptr().cast(), header.len(), 0, address, length), 20);
        }
        libc::close(socket);
    }
}

/// Makes so many connects that nobody answers, each in a socket of its own, waits, and gives up; gives the port. The queue of the listener
/// has room for one connection, and further SYNs are let fall.
pub(crate) fn unanswered(times: i64, milliseconds: i64) -> Vec<i64> {
    let listener = TcpListener::bind(loopback("v4", 0)).unwrap();
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let port = listener.local_addr().unwrap().port();
    let _first = TcpStream::connect(loopback("v4", port.into())).unwrap();
    let _others: Vec<_> = (0..times).map(|_| begin_connect(port)).collect();
    thread::sleep(Duration::from_millis(milliseconds as u64));
    vec![port.into()]
}

fn begin_connect(port: u16) -> TcpStream {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    // SAFETY: the address is good for the call, and nobody else owns the socket.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        let result = libc::connect(socket, (&raw const address).cast(), size_of_val(&address) as u32);
        assert_eq!((result, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINPROGRESS)));
        TcpStream::from_raw_fd(socket)
    }
}
