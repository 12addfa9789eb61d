//! For tests: keys made on the spot, tokens of any content signed with them, and an identity
//! provider on loopback that behaves as badly as it is told to.

pub(crate) mod forged;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// One key of each type.
pub(crate) struct Signers {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

impl Signers {
    fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
            ed25519: Ed25519KeyPair::generate().unwrap(),
        }
    }

    /// Made once a process.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Signers> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    /// Those of somebody else.
    pub(crate) fn other() -> &'static Self {
        static OTHER: OnceLock<Signers> = OnceLock::new();
        OTHER.get_or_init(Self::new)
    }

    /// Signs with the algorithm's own key, or, for HMAC, with `secret`.
    pub(crate) fn sign(&self, algorithm: &str, message: &[u8], secret: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn signature::RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa
                .sign(padding, &random, message, &mut signature)
                .unwrap();
            signature
        };
        let mac = |algorithm| {
            hmac::sign(&hmac::Key::new(algorithm, secret), message)
                .as_ref()
                .to_vec()
        };
        match algorithm {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "ES256" => self.p256.sign(&random, message).unwrap().as_ref().to_vec(),
            "ES384" => self.p384.sign(&random, message).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed25519.sign(message).as_ref().to_vec(),
            "HS256" => mac(hmac::HMAC_SHA256),
            "HS384" => mac(hmac::HMAC_SHA384),
            "HS512" => mac(hmac::HMAC_SHA512),
            other => panic!("no signer for {other}"),
        }
    }

    /// `header.claims.signature`, whatever the header says of itself.
    pub(crate) fn token(&self, algorithm: &str, header: &str, claims: &str) -> String {
        self.token_with(algorithm, header, claims, b"")
    }

    pub(crate) fn token_with(
        &self,
        algorithm: &str,
        header: &str,
        claims: &str,
        secret: &[u8],
    ) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = self.sign(algorithm, message.as_bytes(), secret);
        format!("{message}.{}", encode(signature))
    }

    /// The public half as it is published; `alg` is left for the test to add.
    pub(crate) fn jwk(&self, algorithm: &str, kid: &str) -> Value {
        let key = match algorithm {
            "ES256" => DecodingKey::from_ec_der(self.p256.public_key().as_ref()),
            "ES384" => DecodingKey::from_ec_der(self.p384.public_key().as_ref()),
            "EdDSA" => DecodingKey::from_ed_der(self.ed25519.public_key().as_ref()),
            _ => DecodingKey::from_rsa_der(self.rsa.public_key().as_ref()),
        };
        let mut jwk = serde_json::to_value(Jwk::from_decoding_key(&key, None).unwrap()).unwrap();
        jwk["kid"] = json!(kid);
        jwk["use"] = json!("sig");
        jwk
    }

    pub(crate) fn spki(&self, algorithm: &str) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match algorithm {
            "ES256" => self.p256.public_key().as_der().unwrap(),
            "ES384" => self.p384.public_key().as_der().unwrap(),
            "EdDSA" => self.ed25519.public_key().as_der().unwrap(),
            _ => self.rsa.public_key().as_der().unwrap(),
        };
        der.as_ref().to_vec()
    }

    pub(crate) fn pem(&self, algorithm: &str) -> String {
        pem("PUBLIC KEY", &self.spki(algorithm))
    }

    pub(crate) fn rsa_modulus(&self) -> Vec<u8> {
        let jwk = self.jwk("RS256", "k");
        URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap()
    }
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|line| str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

pub(crate) fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// Differs for every input, and looks random.
pub(crate) fn noise(seed: u32) -> String {
    hex::encode(digest::digest(&digest::SHA256, &seed.to_be_bytes()))
}

/// What an identity provider answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Body(String),
    Status(u16),
    Redirect(String),
    /// A body that goes on for ever.
    Endless,
    /// Nothing at all.
    Hang,
}

/// An identity provider on loopback that counts who comes.
pub(crate) struct IdentityProvider {
    address: SocketAddr,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl IdentityProvider {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (theirs, log) = (Arc::clone(&answers), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&theirs), Arc::clone(&log)));
            }
        });
        Self {
            address,
            answers,
            seen,
            task,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        let mut answers = self.answers.lock().unwrap();
        answers.insert(path.to_owned(), answer);
    }

    pub(crate) fn publish(&self, keys: &[Value]) {
        let set = json!({ "keys": keys }).to_string();
        self.answer("/jwks", Answer::Body(set));
    }

    /// How often a path was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|one| *one == path).count()
    }
}

impl Drop for IdentityProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut chunk = [0; 1024];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => head.extend_from_slice(&chunk[..length]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(path.clone());
    let answer = answers.lock().unwrap().get(&path).cloned();
    let text = match answer {
        Some(Answer::Body(body)) => format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        ),
        Some(Answer::Status(status)) => {
            format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Some(Answer::Redirect(to)) => format!(
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        Some(Answer::Endless) => {
            let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            let spaces = vec![b' '; 65_536];
            while stream.write_all(&spaces).await.is_ok() {}
            return;
        }
        Some(Answer::Hang) => {
            tokio::time::sleep(Duration::from_mins(1)).await;
            return;
        }
        None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(),
    };
    let _sent = stream.write_all(text.as_bytes()).await;
}
