//! Network traffic of known size, over loopback.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Mutex,
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

/// Listens; gives the port.
pub(crate) fn listen(family: &str) -> Vec<i64> {
    let listener = TcpListener::bind(loopback(family, 0)).unwrap();
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
