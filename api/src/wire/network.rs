//! `/network-interfaces/{iface_id}`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vmm::{NetChange, NetSpec};

use super::RateLimiterWire;

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
    /// How much the guest may receive.
    pub rx_rate_limiter: Option<RateLimiterWire>,
    /// How much it may send.
    pub tx_rate_limiter: Option<RateLimiterWire>,
    /// Whether frames from another address than `guest_mac` are dropped; Vitrine's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_filter: Option<bool>,
    /// Queue pairs; Vitrine's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u8>,
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
    pub fn convert(self) -> (NetworkWire, NetSpec) {
        let rx_rate_limiter = self.rx_rate_limiter.and_then(RateLimiterWire::tidy);
        let tx_rate_limiter = self.tx_rate_limiter.and_then(RateLimiterWire::tidy);
        let spec = NetSpec {
            id: self.iface_id.clone(),
            tap: self.host_dev_name.clone(),
            mac: self.guest_mac.map(|mac| mac.0),
            mtu: self.mtu,
            rx_limiter: RateLimiterWire::spec_of(rx_rate_limiter.as_ref()),
            tx_limiter: RateLimiterWire::spec_of(tx_rate_limiter.as_ref()),
            mac_filter: self.mac_filter.unwrap_or(false),
            queues: self.queue_pairs.unwrap_or(1),
        };
        let filled = NetworkWire {
            rx_rate_limiter,
            tx_rate_limiter,
            ..self
        };
        (filled, spec)
    }
}

/// PATCH `/network-interfaces/{iface_id}`: what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPatchWire {
    /// Its id, as in the path.
    pub iface_id: String,
    /// A bucket without size and refill time takes that limit away.
    pub rx_rate_limiter: Option<RateLimiterWire>,
    /// As `rx_rate_limiter`.
    pub tx_rate_limiter: Option<RateLimiterWire>,
}

impl NetworkPatchWire {
    /// What the VM is told.
    pub fn change(&self) -> NetChange {
        NetChange {
            rx_limiter: RateLimiterWire::spec_of(self.rx_rate_limiter.as_ref()),
            tx_limiter: RateLimiterWire::spec_of(self.tx_rate_limiter.as_ref()),
        }
    }

    /// The interface as it is then.
    #[must_use]
    pub fn applied(self, network: NetworkWire) -> NetworkWire {
        let of = |limiter: Option<RateLimiterWire>, change: Option<RateLimiterWire>| {
            Some(
                limiter
                    .unwrap_or_default()
                    .changed(change.unwrap_or_default()),
            )
        };
        NetworkWire {
            rx_rate_limiter: of(network.rx_rate_limiter, self.rx_rate_limiter),
            tx_rate_limiter: of(network.tx_rate_limiter, self.tx_rate_limiter),
            ..network
        }
    }
}
