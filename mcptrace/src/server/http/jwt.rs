//! Tokens of the operator's identity provider: JSON Web Tokens, checked against the public keys of a file (RFC 7517).
//!
//! Which algorithms are taken is decided by the keys, never by the token: keys are public, so a secret one (`oct`) is refused, and
//! `none` is no algorithm. Signatures are checked by ring.

use std::path::Path;

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    decode, decode_header,
    errors::{Error, ErrorKind},
    jwk::{Jwk, JwkSet, PublicKeyUse},
};
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;

use crate::guarded::guarded;

/// How far clocks may differ, in seconds.
const LEEWAY: u64 = 30;
/// The longest token that is looked at, in bytes.
const LONGEST: usize = 8 << 10;
/// The longest name of a subject, in bytes.
const SUBJECT_BYTES: usize = 64;
/// How many keys a file may have.
const MOST_KEYS: usize = 64;

/// Public keys of an identity provider.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    public: DecodingKey,
}

/// Whose tokens are taken, and for whom they must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issuer {
    /// `iss`, as the provider writes it.
    pub(super) name: String,
    /// `aud`: this server's own address.
    pub(super) audience: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl Keys {
    /// The keys of a file.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        Self::parse(&guarded(path).map_err(|error| error.to_string())?)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_str(text).map_err(|error| format!("no JSON Web Key Set: {error}"))?;
        let signs = |key: &&Jwk| !matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption));
        let keys: Vec<_> = set.keys.iter().filter(signs).take(MOST_KEYS).map(Key::of).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err("it has no key that signs".to_owned()) } else { Ok(Self(keys)) }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The subject of a token that is valid now.
    pub(super) fn check(&self, token: &str, issuer: &Issuer) -> Result<String, Error> {
        if token.len() > LONGEST {
            return Err(ErrorKind::InvalidToken.into());
        }
        install();
        let header = decode_header(token)?;
        let fits = |key: &&Key| {
            key.algorithms.contains(&header.alg) && (header.kid.is_none() || key.id.is_none() || key.id == header.kid)
        };
        let mut refused = ErrorKind::InvalidAlgorithm.into();
        for key in self.0.iter().filter(fits) {
            match decode::<Claims>(token, &key.public, &validation(key, issuer)) {
                Ok(token) => return subject(token.claims.sub),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

impl Key {
    fn of(jwk: &Jwk) -> Result<Self, String> {
        use jsonwebtoken::jwk::{AlgorithmParameters as P, EllipticCurve as C};
        let algorithms: &[Algorithm] = match &jwk.algorithm {
            P::RSA(_) => &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256],
            P::EllipticCurve(key) if key.curve == C::P256 => &[Algorithm::ES256],
            P::EllipticCurve(key) if key.curve == C::P384 => &[Algorithm::ES384],
            P::OctetKeyPair(key) if key.curve == C::Ed25519 => &[Algorithm::EdDSA],
            P::OctetKey(_) => return Err("a secret key (kty oct) has no place among public ones".to_owned()),
            _ => return Err("keys are RSA, P-256, P-384 or Ed25519".to_owned()),
        };
        let public = DecodingKey::from_jwk(jwk).map_err(|error| format!("a key that cannot be read: {error}"))?;
        Ok(Self { id: jwk.common.key_id.clone(), algorithms, public })
    }
}

fn validation(key: &Key, issuer: &Issuer) -> Validation {
    let mut validation = Validation::new(key.algorithms[0]);
    validation.algorithms = key.algorithms.to_vec();
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.set_audience(&[&issuer.audience]);
    validation.set_issuer(&[&issuer.name]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY;
    validation
}

fn subject(name: String) -> Result<String, Error> {
    let valid = (1..=SUBJECT_BYTES).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    if valid { Ok(name) } else { Err(ErrorKind::InvalidSubject.into()) }
}

/// Signatures are checked by ring, which TLS brings along.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

fn install() {
    // An error means that it has been done.
    let _ = RING.install_default();
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the library's signature")]
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let scheme = match algorithm {
        Algorithm::RS256 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::ES256 => Scheme::Other(&signature::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Scheme::Other(&signature::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Scheme::Other(&signature::ED25519),
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    Ok(Box::new(RingVerifier { algorithm: *algorithm, scheme, key: key.clone() }))
}

enum Scheme {
    Rsa(&'static RsaParameters),
    Other(&'static dyn VerificationAlgorithm),
}

struct RingVerifier {
    algorithm: Algorithm,
    scheme: Scheme,
    key: DecodingKey,
}

impl RingVerifier {
    fn holds(&self, message: &[u8], signature: &[u8]) -> bool {
        use jsonwebtoken::DecodingKeyKind as K;
        match (&self.scheme, self.key.kind()) {
            (Scheme::Rsa(parameters), K::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Scheme::Other(algorithm), K::SecretOrDer(key)) => {
                UnparsedPublicKey::new(*algorithm, key).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

impl jsonwebtoken::signature::Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), jsonwebtoken::signature::Error> {
        self.holds(message, signature).then_some(()).ok_or_else(jsonwebtoken::signature::Error::new)
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use serde_json::{Value, json};

    use super::*;

    const AUDIENCE: &str = "https://host.example/mcp";
    const ISSUER: &str = "https://id.example";

    /// A provider with one key, and what it signs.
    struct Provider(EcdsaKeyPair);

    impl Provider {
        fn new() -> Self {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &SystemRandom::new());
            Self(pair.unwrap())
        }

        fn jwks(&self) -> String {
            let point = self.0.public_key().as_ref();
            let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
            json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "one", "use": "sig", "x": x, "y": y }] }).to_string()
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let signed = format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
            let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
            format!("{signed}.{}", base64(signature.as_ref()))
        }
    }

    fn base64(bytes: &[u8]) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..=chunk.len() {
                text.push(char::from(LETTERS[(word >> (18 - 6 * place)) as usize & 63]));
            }
        }
        text
    }

    fn issuer() -> Issuer {
        Issuer { name: ISSUER.into(), audience: AUDIENCE.into() }
    }

    fn claims() -> Value {
        json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": jsonwebtoken::get_current_timestamp() + 600 })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    #[test]
    fn a_valid_token_names_its_subject() {
        let provider = Provider::new();
        let keys = Keys::parse(&provider.jwks()).unwrap();
        for header in [json!({ "alg": "ES256", "kid": "one" }), json!({ "alg": "ES256", "typ": "JWT" })] {
            assert_eq!(keys.check(&provider.sign(&header, &claims()), &issuer()).unwrap(), "alice");
        }
    }

    #[test]
    fn claims_must_be_there_and_right() {
        let provider = Provider::new();
        let keys = Keys::parse(&provider.jwks()).unwrap();
        let now = jsonwebtoken::get_current_timestamp();
        for claims in [
            with("exp", json!(now - 60)),
            with("nbf", json!(now + 600)),
            with("aud", json!("https://other.example/mcp")),
            with("iss", json!("https://evil.example")),
            with("sub", json!("")),
            with("sub", json!("a\nb")),
            with("sub", json!("x".repeat(65))),
        ] {
            assert!(keys.check(&provider.sign(&json!({ "alg": "ES256" }), &claims), &issuer()).is_err(), "{claims}");
        }
        for missing in ["exp", "aud", "iss", "sub"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(missing);
            assert!(keys.check(&provider.sign(&json!({ "alg": "ES256" }), &claims), &issuer()).is_err(), "{missing}");
        }
    }

    #[test]
    fn the_token_does_not_choose_its_algorithm_or_key() {
        let provider = Provider::new();
        let keys = Keys::parse(&provider.jwks()).unwrap();
        let good = provider.sign(&json!({ "alg": "ES256" }), &claims());
        let (signed, _) = good.rsplit_once('.').unwrap();
        let body = signed.split_once('.').unwrap().1;
        let header = |header: Value| base64(header.to_string().as_bytes());
        for forged in [
            format!("{}.{body}.", header(json!({ "alg": "none" }))),
            format!("{signed}."),
            format!("{}.{body}.{}", header(json!({ "alg": "HS256" })), base64(b"whatever it is, it is no MAC....")),
            provider.sign(&json!({ "alg": "ES384" }), &claims()),
            provider.sign(&json!({ "alg": "ES256", "kid": "another" }), &claims()),
            Provider::new().sign(&json!({ "alg": "ES256", "kid": "one" }), &claims()),
            good.replacen('.', "..", 1),
            "x".repeat(LONGEST + 1),
        ] {
            assert!(keys.check(&forged, &issuer()).is_err(), "{forged}");
        }
    }

    #[test]
    fn files_of_secrets_or_of_nothing_are_refused() {
        let oct = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }] }).to_string();
        assert!(Keys::parse(&oct).unwrap_err().contains("secret key"));
        assert!(Keys::parse("{\"keys\":[]}").unwrap_err().contains("no key"));
        assert!(Keys::parse("nonsense").is_err());
    }
}
