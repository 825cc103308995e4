//! Whose certificates count for nothing: the twin of `hostmesh/identity/revocation.py`.

use std::collections::HashMap;

use crate::config::ConfigError;
use crate::snapshot;

/// What is asked of a certificate.
#[derive(Debug, Clone, Copy)]
pub struct Certificate<'a> {
    /// The URI SAN.
    pub spiffe_id: &'a str,
    /// The DNS SANs: its host.
    pub hosts: &'a [String],
    /// Lower-case hex without leading zeros.
    pub serial: &'a str,
    /// Seconds since the epoch.
    pub not_before: u64,
}

/// Entries by what they name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    hosts: HashMap<String, u64>,
    units: HashMap<String, u64>,
    serials: HashMap<String, u64>,
}

impl Revoked {
    /// Indexes the snapshot's entries.
    pub fn build(entries: &[snapshot::Revoked]) -> Result<Self, ConfigError> {
        let mut revoked = Self::default();
        for entry in entries {
            let of_kind = match &*entry.kind {
                "host" => &mut revoked.hosts,
                "unit" => &mut revoked.units,
                "serial" => &mut revoked.serials,
                _ => {
                    return Err(ConfigError::Bad {
                        at: "revoked".into(),
                        value: entry.kind.clone(),
                        expected: "a kind (host, unit, serial)",
                    });
                }
            };
            of_kind.insert(entry.name.clone(), entry.begun_by);
        }
        Ok(revoked)
    }

    /// Names what the certificate is revoked by, for a person.
    pub fn names(&self, certificate: &Certificate<'_>) -> Option<String> {
        let counts = |map: &HashMap<String, u64>, name: &str| {
            map.get(name)
                .is_some_and(|begun_by| *begun_by == 0 || certificate.not_before <= *begun_by)
        };
        if counts(&self.serials, certificate.serial) {
            return Some(format!("serial {}", certificate.serial));
        }
        if counts(&self.units, certificate.spiffe_id) {
            return Some(format!("unit {}", certificate.spiffe_id));
        }
        let mut hosts = certificate.hosts.iter().map(|host| host.to_ascii_lowercase());
        hosts
            .find(|host| counts(&self.hosts, host))
            .map(|host| format!("host {host}"))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Vectors {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        entries: Vec<snapshot::Revoked>,
        certificate: Said,
        expect: Option<String>,
    }

    #[derive(Deserialize)]
    struct Said {
        spiffe_id: String,
        hosts: Vec<String>,
        serial: String,
        not_before: u64,
    }

    #[test]
    fn whom_an_entry_means() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../../../tests/vectors/revoked.json")).expect("the vectors");
        assert!(!vectors.cases.is_empty());
        for case in vectors.cases {
            let revoked = Revoked::build(&case.entries).expect("entries");
            let said = Certificate {
                spiffe_id: &case.certificate.spiffe_id,
                hosts: &case.certificate.hosts,
                serial: &case.certificate.serial,
                not_before: case.certificate.not_before,
            };
            assert_eq!(revoked.names(&said), case.expect, "{}", case.name);
        }
    }

    #[test]
    fn a_kind_that_is_none_is_refused() {
        let entry = snapshot::Revoked {
            kind: "planet".into(),
            name: "mars".into(),
            begun_by: 0,
            reason: String::new(),
        };
        assert!(Revoked::build(&[entry]).is_err());
    }
}
