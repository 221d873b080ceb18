//! `/network-interfaces/{iface_id}`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vmm::NetSpec;

use super::{RateLimiterWire, WireError, rate_limiter};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkWire {
    /// Its id, as in the path.
    pub iface_id: String,
    /// The host's tap device.
    pub host_dev_name: String,
    /// The guest's MAC address.
    pub guest_mac: Option<MacWire>,
    /// The guest's MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Not supported by this build.
    pub rx_rate_limiter: Option<RateLimiterWire>,
    /// Not supported by this build.
    pub tx_rate_limiter: Option<RateLimiterWire>,
}

/// A MAC address in its text form, six bytes in hex with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacWire(pub [u8; 6]);

/// A text that is no MAC address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a MAC address; give six hex bytes with colons, as in 06:00:ac:10:00:02")]
pub struct MacError(String);

impl FromStr for MacWire {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MacError(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(error)?;
            let hex = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| hex)
                .ok_or_else(error)?;
        }
        match parts.next() {
            None => Ok(MacWire(mac)),
            Some(_) => Err(error()),
        }
    }
}

impl fmt::Display for MacWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacWire {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacWire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error: MacError| serde::de::Error::custom(format!("guest_mac {error}")))
    }
}

impl NetworkWire {
    /// The interface as GET /vm/config shows it, and as a spec.
    ///
    /// # Errors
    /// A field that this build does not support.
    pub fn convert(self) -> Result<(NetworkWire, NetSpec), WireError> {
        rate_limiter::refuse(self.rx_rate_limiter.as_ref(), "rx_rate_limiter")?;
        rate_limiter::refuse(self.tx_rate_limiter.as_ref(), "tx_rate_limiter")?;
        let spec = NetSpec {
            id: self.iface_id.clone(),
            tap: self.host_dev_name.clone(),
            mac: self.guest_mac.map(|mac| mac.0),
            mtu: self.mtu,
        };
        let filled = NetworkWire {
            rx_rate_limiter: None,
            tx_rate_limiter: None,
            ..self
        };
        Ok((filled, spec))
    }
}
