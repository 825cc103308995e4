//! A snapshot: what can be read can be written and read again; what is put in force can be found in it.
#![no_main]

use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::snapshot::Snapshot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot>(bytes) else {
        return;
    };
    let text = serde_json::to_vec(&snapshot).expect("written");
    let again: Snapshot = serde_json::from_slice(&text).expect("read again");
    assert_eq!(again, snapshot, "the file of the last run says something else");
    let Ok(config) = Config::build(snapshot) else { return };
    for unit in &config.units {
        let found = [
            config.unit_by_number(unit.number),
            config.unit_by_name(&unit.unit),
            config.unit_by_sni(&unit.sni),
        ];
        assert!(
            found
                .iter()
                .all(|found| found.is_some_and(|found| found.unit == unit.unit))
        );
        assert!(unit.ports.iter().all(|port| unit.port(port.port).is_some()));
    }
    for service in &config.services {
        assert!(config.service_by_name(&service.name).is_some());
        for port in &service.ports {
            for vip in &service.vips {
                config.destination(*vip, port.port);
            }
        }
    }
});
