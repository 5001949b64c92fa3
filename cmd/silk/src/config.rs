//! silkd's configuration file, as far as a command has a use for it.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use silk_registry::{Reference, Registry};

use crate::failure::{ConfigFault, Failure};

const CONFIG: &str = "/etc/silk/config.toml";

/// The file that was named, or silkd's own.
pub fn path(named: Option<&Path>) -> PathBuf {
    named.unwrap_or(Path::new(CONFIG)).to_owned()
}

/// Reads the file; one that is not there is the defaults only where nobody named it.
pub fn load<T: DeserializeOwned + Default>(named: Option<&Path>) -> Result<T, Failure> {
    let path = path(named);
    let fault = |cause: ConfigFault| Failure::Config { path: path.clone(), cause };
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map_err(|e| fault(Box::new(e).into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(T::default()),
        Err(e) => Err(fault(e.into())),
    }
}

/// A client for the image's registry, without TLS if told so.
pub fn registry(
    named: Option<&Path>,
    mut config: silk_registry::Config,
    image: &Reference,
    plain_http: bool,
) -> Result<Registry, Failure> {
    if plain_http {
        config.plain_http.push(image.host().to_owned());
    }
    Registry::new(config).map_err(|cause| Failure::Config { path: path(named), cause: Box::new(cause).into() })
}
