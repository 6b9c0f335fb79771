//! Answers: plain ones, and a watch over those that take long.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{Response, StatusCode, header},
};
use hyper::body::{Frame, SizeHint};

/// A few words for people.
pub(super) fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut answer = Response::new(Body::from(format!("{text}\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// A body that tells when it is dropped before its end.
pub(super) struct Watch<B, F: FnOnce()> {
    body: B,
    broken: Option<F>,
}

impl<B: HttpBody, F: FnOnce()> Watch<B, F> {
    /// Calls `broken` if the body is dropped before its end.
    pub(super) fn new(body: B, broken: F) -> Self {
        // One that has nothing to send is never asked.
        let broken = (!body.is_end_stream()).then_some(broken);
        Self { body, broken }
    }
}

impl<B, F> HttpBody for Watch<B, F>
where
    B: HttpBody<Data = Bytes> + Unpin,
    F: FnOnce() + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.broken = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B, F: FnOnce()> Drop for Watch<B, F> {
    fn drop(&mut self) {
        if let Some(broken) = self.broken.take() {
            broken();
        }
    }
}
