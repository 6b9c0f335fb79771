//! What kernel programs share.
