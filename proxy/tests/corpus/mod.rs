//! Reads the corpora of hostile input (`tests/corpus`): a case a file.

use std::path::Path;

use serde::de::DeserializeOwned;

/// The cases of a folder by their names, in the order of these.
pub fn corpus<T: DeserializeOwned>(folder: &str) -> Vec<(String, T)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/corpus")
        .join(folder);
    let mut cases: Vec<(String, T)> = std::fs::read_dir(&folder)
        .expect("the corpus")
        .map(|file| {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("a text");
            let case = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.file_stem().expect("a name").to_string_lossy().into_owned(), case)
        })
        .collect();
    cases.sort_by(|(one, _), (other, _)| one.cmp(other));
    cases
}
