//! Turns signed chains into SVIDs in force: makes the units' keys, asks for certificates, checks what comes back.
//!
//! Law: a private key is made here and leaves the process in a sealed memory file for systemd only. A chain is put in
//! force when its leaf is for a key of ours, names exactly this unit on exactly this host, and chains to the bundle.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use hostmesh_proxy_core::config::{Config, Unit};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType};
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::fdstore::{self, Inherited, Named};
use crate::peer::why_tls;
use crate::sealed::{self, Sealed};
use crate::shared::{Shared, Svid, Svids};
use crate::told::Level;

/// The prefix of an SVID's name in systemd's fd store.
pub const FD_PREFIX: &str = "svid-";

/// The prefix of a key that waits for its certificate, where a process hands it to its successor.
const PENDING_PREFIX: &str = "pending-";

/// Why a request or a chain was refused; the text goes to the agent as it is.
#[derive(Debug)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(why: impl fmt::Display) -> Refused {
    Refused(why.to_string())
}

/// A private key of a unit and its public half (SubjectPublicKeyInfo, RFC 5280 section 4.1).
#[derive(Clone)]
struct Key {
    private: Zeroizing<Vec<u8>>,
    public: Vec<u8>,
}

impl Key {
    fn read(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, Refused> {
        let pair = KeyPair::try_from(&pkcs8[..]).map_err(refused)?;
        Ok(Self {
            public: pair.subject_public_key_info(),
            private: pkcs8,
        })
    }
}

struct Current {
    key: Key,
    fd_name: String,
    svid: Arc<Svid>,
}

impl Current {
    fn sealed(&self) -> io::Result<Named> {
        Ok((self.fd_name.clone(), sealed::seal(&to_keep(&self.svid, &self.key))?))
    }
}

/// The keys of this host's units. Lives on the control thread; what is in force is published in [`Shared`].
pub struct SvidStore {
    shared: Arc<Shared>,
    pending: HashMap<String, Key>,
    current: HashMap<String, Current>,
    unproved: Vec<(String, Sealed)>,
}

impl SvidStore {
    /// No keys yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            pending: HashMap::new(),
            current: HashMap::new(),
            unproved: Vec::new(),
        }
    }

    /// Takes what systemd kept or another process gave. What proves itself against the config in force is in force afterwards; without a
    /// config all of it waits for the first [`SvidStore::reconcile`].
    pub fn restore(&mut self, inherited: &Inherited) {
        for (name, fd) in inherited.take(FD_PREFIX) {
            match sealed::open(fd) {
                Ok(kept) => self.unproved.push((name, kept)),
                Err(error) => forget(&self.shared, &name, &format!("not usable: {error}")),
            }
        }
        for (_, fd) in inherited.take(PENDING_PREFIX) {
            let kept = sealed::open(fd).map_err(refused);
            match kept.and_then(|kept| Ok((kept.unit, Key::read(kept.key)?))) {
                Ok((unit, key)) => _ = self.pending.insert(unit, key),
                Err(why) => self
                    .shared
                    .told
                    .say(Level::Warning, format_args!("a key is lost: {why}")),
            }
        }
        self.reconcile();
    }

    /// The SVIDs, for another process to [`SvidStore::restore`].
    pub fn sealed(&self) -> io::Result<Vec<Named>> {
        let current = self.current.values().map(Current::sealed);
        let unproved = self
            .unproved
            .iter()
            .map(|(name, kept)| Ok((name.clone(), sealed::seal(kept)?)));
        current.chain(unproved).collect()
    }

    /// The SVID of one unit, for another process to [`SvidStore::restore`].
    pub fn sealed_of(&self, unit: &str) -> io::Result<Vec<Named>> {
        self.current.get(unit).map(Current::sealed).into_iter().collect()
    }

    /// The keys that wait for a certificate, for another process to [`SvidStore::restore`].
    pub fn sealed_pending(&self) -> io::Result<Vec<Named>> {
        let kept = |(unit, key): (&String, &Key)| {
            let kept = Sealed {
                unit: unit.clone(),
                key: key.private.clone(),
                chain: Vec::new(),
            };
            Ok((format!("{PENDING_PREFIX}{unit}"), sealed::seal(&kept)?))
        };
        self.pending.iter().map(kept).collect()
    }

    /// Makes the SVIDs fit the config in force: units that are gone lose theirs, kept ones prove themselves.
    pub fn reconcile(&mut self) {
        let Some(config) = self.shared.config() else { return };
        let fits = |unit: &str, spiffe_id: &str| {
            config
                .unit_by_name(unit)
                .is_some_and(|unit| *unit.spiffe_id == *spiffe_id)
        };
        self.pending.retain(|unit, _| config.unit_by_name(unit).is_some());
        self.current.retain(|unit, current| {
            let stays = fits(unit, &current.svid.spiffe_id);
            if !stays {
                forget(
                    &self.shared,
                    &current.fd_name,
                    &format!("{unit} is no longer {}", current.svid.spiffe_id),
                );
            }
            stays
        });
        for (name, kept) in std::mem::take(&mut self.unproved) {
            if let Err(why) = self.prove(&config, &name, kept) {
                forget(&self.shared, &name, &why.to_string());
            }
        }
        self.publish(&config);
    }

    fn prove(&mut self, config: &Config, name: &str, kept: Sealed) -> Result<(), Refused> {
        let unit = known(config, &kept.unit)?;
        let key = Key::read(kept.key)?;
        let svid = self.certify(config, unit, &key, kept.chain)?;
        let current = Current {
            key,
            fd_name: name.to_owned(),
            svid: Arc::new(svid),
        };
        match self.current.get(&kept.unit) {
            Some(other) if other.svid.not_before >= current.svid.not_before => {
                return Err(refused(format!("{}: a newer one is in force", kept.unit)));
            }
            Some(other) => forget(
                &self.shared,
                &other.fd_name,
                &format!("{}: a newer one is in force", kept.unit),
            ),
            None => {}
        }
        self.current.insert(kept.unit, current);
        Ok(())
    }

    /// Makes a new key for a unit of the snapshot and gives a PKCS#10 request (RFC 2986, DER) for it. The key in force
    /// stays until the answer comes; of several requests only the last counts.
    pub fn request(&mut self, unit: &str) -> Result<Vec<u8>, Refused> {
        let config = self.config()?;
        let unit = known(&config, unit)?;
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, unit.unit.get(..64).unwrap_or(&unit.unit));
        params.subject_alt_names = vec![
            SanType::URI(unit.spiffe_id.to_string().try_into().map_err(refused)?),
            SanType::DnsName(config.host.to_string().try_into().map_err(refused)?),
        ];
        let csr = params.serialize_request(&pair).map_err(refused)?;
        self.pending
            .insert(unit.unit.to_string(), Key::read(Zeroizing::new(pair.serialize_der()))?);
        Ok(csr.der().to_vec())
    }

    /// Puts a chain (DER, leaf first) in force, or says why not; then nothing has changed.
    pub fn set(&mut self, unit: &str, chain: Vec<Vec<u8>>) -> Result<(), Refused> {
        let config = self.config()?;
        let of = known(&config, unit)?;
        let public = leaf_key(&chain)?;
        let ours = [
            self.pending.get(unit),
            self.current.get(unit).map(|current| &current.key),
        ];
        let key = ours.into_iter().flatten().find(|key| key.public == public).cloned();
        let key = key.ok_or_else(|| {
            refused(format!(
                "{unit}: the leaf is for another key than the one of the last request"
            ))
        })?;
        let svid = self.certify(&config, of, &key, chain)?;
        let fd_name = self.keep(&svid, &key);
        self.pending
            .retain(|name, pending| name != unit || pending.public != public);
        let fresh = Current {
            key,
            fd_name: fd_name.clone(),
            svid: Arc::new(svid),
        };
        if let Some(old) = self.current.insert(unit.to_owned(), fresh)
            && old.fd_name != fd_name
        {
            forget(&self.shared, &old.fd_name, "replaced");
        }
        self.publish(&config);
        Ok(())
    }

    /// Checks a chain against key, unit, host and bundle.
    fn certify(&self, config: &Config, unit: &Unit, key: &Key, chain: Vec<Vec<u8>>) -> Result<Svid, Refused> {
        let name = &unit.unit;
        let at = |why: &dyn fmt::Display| refused(format!("{name}: {why}"));
        let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(CertificateDer::from).collect();
        let (now, trust) = (UnixTime::now(), self.shared.trust());
        let peer = trust.server(&chain, now).map_err(|error| at(&why_tls(&error)))?;
        trust.client(&chain, now).map_err(|error| at(&why_tls(&error)))?;
        if *peer.spiffe_id != *unit.spiffe_id {
            return Err(at(&format!(
                "the leaf is {}, expected {}",
                peer.spiffe_id, unit.spiffe_id
            )));
        }
        if !peer.hosts.iter().any(|host| host.eq_ignore_ascii_case(&config.host)) {
            return Err(at(&format!(
                "the leaf is for host {}, this is {}",
                peer.hosts.join(", "),
                config.host
            )));
        }
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(&key.private[..]));
        let signer = provider::sign::any_ecdsa_type(&private).map_err(|error| at(&error))?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(|error| at(&error))?;
        Ok(Svid {
            unit: name.to_string(),
            spiffe_id: unit.spiffe_id.to_string(),
            sni: unit.sni.to_string(),
            serial: peer.serial,
            not_before: peer.not_before,
            not_after: peer.not_after,
            key: Arc::new(certified),
        })
    }

    /// Leaves a sealed copy with systemd; gives its name there. An SVID that cannot be kept is in force all the same.
    fn keep(&self, svid: &Svid, key: &Key) -> String {
        let kept = to_keep(svid, key);
        let name = fd_name(&svid.unit, &kept.chain);
        if self
            .current
            .get(&svid.unit)
            .is_some_and(|current| current.fd_name == name)
        {
            return name;
        }
        if let Err(error) = sealed::seal(&kept).and_then(|fd| fdstore::store(&name, fd)) {
            self.shared.told.say(
                Level::Error,
                format_args!("{}: its key will not outlive this process: {error}", svid.unit),
            );
        }
        name
    }

    fn publish(&mut self, config: &Config) {
        for current in self.current.values_mut() {
            if let Some(unit) = config.unit_by_name(&current.svid.unit)
                && *unit.sni != *current.svid.sni
            {
                let svid = &current.svid;
                current.svid = Arc::new(Svid {
                    unit: svid.unit.clone(),
                    spiffe_id: svid.spiffe_id.clone(),
                    sni: unit.sni.to_string(),
                    serial: svid.serial.clone(),
                    not_before: svid.not_before,
                    not_after: svid.not_after,
                    key: svid.key.clone(),
                });
            }
        }
        self.shared
            .set_svids(Svids::new(self.current.values().map(|current| current.svid.clone())));
    }

    fn config(&self) -> Result<Arc<Config>, Refused> {
        self.shared
            .config()
            .ok_or_else(|| refused("no snapshot is in force yet"))
    }
}

fn known<'a>(config: &'a Config, unit: &str) -> Result<&'a Arc<Unit>, Refused> {
    config
        .unit_by_name(unit)
        .ok_or_else(|| refused(format!("{unit} is not a unit of the snapshot")))
}

fn leaf_key(chain: &[Vec<u8>]) -> Result<Vec<u8>, Refused> {
    let leaf = chain.first().ok_or_else(|| refused("the chain is empty"))?;
    let (rest, leaf) =
        X509Certificate::from_der(leaf).map_err(|error| refused(format!("the leaf does not parse: {error}")))?;
    if !rest.is_empty() {
        return Err(refused("the leaf does not parse: bytes after its end"));
    }
    Ok(leaf.public_key().raw.to_vec())
}

/// What the service manager keeps is the business of the process that leads.
fn forget(shared: &Shared, fd_name: &str, why: &str) {
    if shared.is_retired() {
        return;
    }
    shared
        .told
        .say(Level::Info, format_args!("{fd_name}: forgotten: {why}"));
    if let Err(error) = fdstore::remove(fd_name) {
        let what = format_args!("{fd_name}: could not be taken out of the fd store: {error}");
        shared.told.say(Level::Warning, what);
    }
}

fn to_keep(svid: &Svid, key: &Key) -> Sealed {
    Sealed {
        unit: svid.unit.clone(),
        key: key.private.clone(),
        chain: svid.key.cert.iter().map(|der| der.to_vec()).collect(),
    }
}

fn fd_name(unit: &str, chain: &[Vec<u8>]) -> String {
    let all = [unit.as_bytes(), &[0], &chain.concat()].concat();
    format!("{FD_PREFIX}{}", hex(&digest(&SHA256, &all).as_ref()[..16]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
