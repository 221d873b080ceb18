//! A PCI function's configuration space and MSI-X table: accesses by a hostile driver.

use devices::pci::msix::{CAPABILITY, CONTROL_BITS};
use devices::pci::{Bar, ConfigRegisters, Identity, MsixTable, VectorState};

use super::input::Input;

const VECTORS: u16 = 3;
const BAR: Bar = Bar {
    address: 0xE800_0000,
    bytes: 0x8000,
};

/// Runs the target: 11 bytes an access, of which one says what, two where, eight the value.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let identity = Identity {
        id: (0x1AF4, 0x1042),
        revision: 1,
        class: 0x01_8000,
        subsystem: (0x1AF4, 2),
    };
    let mut config = ConfigRegisters::new(identity, Some(BAR));
    let mut body = [2, 0].to_vec();
    body.extend([0; 8]);
    let control = config.add_capability(CAPABILITY, &body, &CONTROL_BITS.to_le_bytes());
    let control = control.expect("it fits") + 2;
    let mut table = MsixTable::new(VECTORS);
    while !input.is_empty() {
        let (what, place, value) = (input.u8(), input.array::<2>(), input.u64());
        let place = u16::from_le_bytes(place);
        let width = [1, 2, 4, 8][usize::from(what >> 6)];
        let data = &value.to_le_bytes()[..width];
        if what & 1 == 0 {
            // Mostly the registers that there are.
            let offset = if what & 2 == 0 { place } else { place % 0x80 };
            access_config(&mut config, offset, data);
            table.set_control(config.word(control));
        } else {
            access_table(
                &mut table,
                u64::from(place % 0x80) << (what >> 1 & 31),
                data,
            );
        }
        judge(&config, &table);
    }
}

fn access_config(config: &mut ConfigRegisters, offset: u16, data: &[u8]) {
    let mut before = vec![0; data.len()];
    let readable = config.read(offset, &mut before);
    if config.write(offset, data).is_ok() {
        assert_eq!(readable, Ok(()), "what can be written can be read");
    }
}

fn access_table(table: &mut MsixTable, offset: u64, data: &[u8]) {
    let before = table.clone();
    match table.write(offset, data) {
        Ok(vector) => assert!(vector < VECTORS),
        Err(_) => assert_eq!(*table, before, "a refused write changes nothing"),
    }
}

fn judge(config: &ConfigRegisters, table: &MsixTable) {
    assert_eq!(config.double_word(0), 0x1042_1AF4);
    let shown = config.double_word(0x10);
    assert!(shown == 0xE800_0004 || shown == 0xFFFF_8004, "{shown:#x}");
    for vector in 0..VECTORS {
        if let VectorState::Open { address, .. } = table.state(vector) {
            assert_eq!(address & 3, 0, "an address of double words");
        }
    }
    assert_eq!(table.state(VECTORS), VectorState::Off);
}
