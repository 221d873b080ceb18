//! Buses, legacy devices, virtio transports, queue runner, block and net
