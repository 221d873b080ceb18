//! Counters, histograms, heartbeats and the black box. Knows no device and no KVM
