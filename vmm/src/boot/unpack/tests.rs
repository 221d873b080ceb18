use super::*;

/// Linked for 16 MiB: 64 bytes of text that hold, at 0, 8 and 16, a 32-bit word, an inverse one and
/// a 64-bit one to relocate.
fn image() -> Vec<u8> {
    let mut image = vec![0u8; elf::TEXT_OFFSET as usize];
    image[..6].copy_from_slice(b"\x7FELF\x02\x01");
    image[18] = 62;
    image[24..32].copy_from_slice(&0x100_0000u64.to_le_bytes());
    image[32..40].copy_from_slice(&64u64.to_le_bytes());
    image[54] = 56;
    image[56] = 1;
    image[64] = 1;
    image[72..80].copy_from_slice(&elf::TEXT_OFFSET.to_le_bytes());
    image[88..96].copy_from_slice(&0x100_0000u64.to_le_bytes());
    image[96..104].copy_from_slice(&64u64.to_le_bytes());
    let mut text = [0u8; 64];
    text[0..4].copy_from_slice(&0x8100_0010u32.to_le_bytes());
    text[8..12].copy_from_slice(&0x1000u32.to_le_bytes());
    text[16..24].copy_from_slice(&0xFFFF_FFFF_8100_0020u64.to_le_bytes());
    image.extend(text);
    for word in [0, 0x8100_0010u32, 0, 0x8100_0008, 0, 0x8100_0000] {
        image.extend(word.to_le_bytes());
    }
    image
}

fn bzimage(payload: &[u8], size: usize) -> (Vec<u8>, setup_header) {
    let mut file = vec![0u8; 1024];
    file[0x210..0x218].copy_from_slice(b"6.12.117");
    let payload_offset = 0;
    file.extend(payload);
    file.extend((size as u32).to_le_bytes());
    let header = setup_header {
        setup_sects: 1,
        payload_offset,
        payload_length: payload.len() as u32 + 4,
        kernel_alignment: 2 << 20,
        pref_address: 0x100_0000,
        init_size: 4 << 20,
        kernel_version: 0x10,
        ..Default::default()
    };
    (file, header)
}

fn zstd_image() -> (Vec<u8>, setup_header) {
    let image = image();
    bzimage(&zstd::bulk::compress(&image, 3).unwrap(), image.len())
}

fn ram() -> GuestRam {
    let spec = memory::MemorySpec {
        size_mib: 64,
        ..Default::default()
    };
    memory::build(&spec).unwrap()
}

fn word<const N: usize>(ram: &GuestRam, at: u64) -> [u8; N] {
    use memory::Bytes;
    let mut bytes = [0; N];
    ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn a_kernel_that_wants_its_default_place_gets_it_unchanged() {
    let (file, header) = zstd_image();
    let ram = ram();
    let unpacked = unpack(&ram, Source::Packed(&file), &file, &header, 64 << 20, false).unwrap();
    assert_eq!(unpacked.entry, GuestAddress(0x100_0000));
    assert_eq!(unpacked.loadflags & KASLR_FLAG, 0);
    assert_eq!(u32::from_le_bytes(word(&ram, 0x100_0000)), 0x8100_0010);
    // The relocations behind it are gone: bss begins there.
    assert_eq!(word::<24>(&ram, 0x100_0040), [0; 24]);
}

#[test]
fn a_kernel_placed_at_random_is_relocated_by_one_delta() {
    let (file, header) = zstd_image();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let ram = ram();
        let unpacked = unpack(&ram, Source::Packed(&file), &file, &header, 64 << 20, true).unwrap();
        let at = unpacked.entry.0;
        assert!(at.is_multiple_of(2 << 20) && (0x100_0000..=(60 << 20)).contains(&at));
        assert_eq!(unpacked.loadflags & KASLR_FLAG, KASLR_FLAG);
        let long = u64::from_le_bytes(word(&ram, at + 16));
        let delta = long - 0xFFFF_FFFF_8100_0020;
        assert!(delta.is_multiple_of(2 << 20) && delta < 1 << 30);
        assert_eq!(
            u32::from_le_bytes(word(&ram, at)),
            0x8100_0010 + delta as u32
        );
        assert_eq!(
            u32::from_le_bytes(word(&ram, at + 8)),
            0x1000u32.wrapping_sub(delta as u32)
        );
        places.insert((at, delta));
    }
    assert!(places.len() > 10, "{places:?}");
}

#[test]
fn lz4_is_unpacked_as_well() {
    let image = image();
    let mut packed = LZ4_LEGACY_MAGIC.to_vec();
    for block in image.chunks(1 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    let (file, header) = bzimage(&packed, image.len());
    let ram = ram();
    assert!(unpack(&ram, Source::Packed(&file), &file, &header, 64 << 20, false).is_ok());
    assert_eq!(u32::from_le_bytes(word(&ram, 0x100_0000)), 0x8100_0010);
}

#[test]
fn what_is_not_understood_is_left_to_the_guest() {
    let (file, header) = zstd_image();
    let ram = ram();
    let refuse = |file: &[u8], header: &setup_header, top| {
        unpack(&ram, Source::Packed(file), file, header, top, true).unwrap_err()
    };
    assert_eq!(
        refuse(&file[..1030], &header, 64 << 20),
        UnpackError::Header
    );
    assert_eq!(refuse(&file, &header, 18 << 20), UnpackError::Room);
    let mut other = file.clone();
    other[1024] = 0xFD;
    assert!(matches!(
        refuse(&other, &header, 64 << 20),
        UnpackError::Compression(_)
    ));
    let mut unknown = file.clone();
    unknown[0x210] = b'x';
    assert!(matches!(
        refuse(&unknown, &header, 64 << 20),
        UnpackError::Image(_)
    ));
    // A word of the last set that points outside.
    let mut image = image();
    let end = image.len();
    image[end - 4..].copy_from_slice(&0x9000_0000u32.to_le_bytes());
    let (file, header) = bzimage(&zstd::bulk::compress(&image, 3).unwrap(), image.len());
    let error = refuse(&file, &header, 64 << 20);
    assert_eq!(error, UnpackError::Image("a relocation outside"));
}

#[test]
fn newer_kernels_have_no_inverse_relocations() {
    let (mut file, header) = zstd_image();
    assert_eq!(
        relocate::sets(&file, &header),
        Ok(relocate::Sets::WithInverse)
    );
    for (version, sets) in [
        (b"6.14.9  ", relocate::Sets::WithInverse),
        (b"6.15.0  ", relocate::Sets::Plain),
        (b"7.0-rc1 ", relocate::Sets::Plain),
    ] {
        file[0x210..0x218].copy_from_slice(version);
        assert_eq!(relocate::sets(&file, &header), Ok(sets));
    }
}

proptest::proptest! {
    #[test]
    fn no_image_makes_it_panic(
        at in 0usize..256,
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..32),
        cut in 0usize..200,
    ) {
        let mut image = image();
        for (place, byte) in image.iter_mut().skip(at).zip(&bytes) {
            *place = *byte;
        }
        image.truncate(image.len() - cut);
        let (file, header) = bzimage(&zstd::bulk::compress(&image, 1).unwrap(), image.len());
        let _ = unpack(&ram(), Source::Packed(&file), &file, &header, 64 << 20, true);
    }
}

/// A folder that is gone at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("vitrine-kept-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// A kernel file, and where its unpacked form goes.
    fn kernel(&self, name: &str, content: &[u8]) -> (std::path::PathBuf, Identity) {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        let identity = Identity::of(&std::fs::File::open(&path).unwrap()).unwrap();
        (self.0.join("store"), identity)
    }

    fn kept(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.0.join("store")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_was_kept_is_what_unpacking_gives() {
    let folder = Folder::new("same");
    let (file, header) = zstd_image();
    let (store, identity) = folder.kernel("k", &file);
    assert!(Store::open(&store).unwrap().find(&identity).is_none());
    keep(&store, &file, &header, &identity).unwrap();
    let kept = || Store::open(&store).unwrap().find(&identity).unwrap();
    let (one, two) = (ram(), ram());
    let source = Source::Packed(&file);
    let first = unpack(&one, source, &file, &header, 64 << 20, false).unwrap();
    let second = unpack(&two, Source::Kept(kept()), &file, &header, 64 << 20, false).unwrap();
    assert_eq!(first, second);
    let text = |ram: &GuestRam| word::<0x1000>(ram, 0x100_0000);
    assert_eq!(text(&one), text(&two));
    // It was kept before it was relocated: each VM relocates it anew.
    let moved = unpack(&two, Source::Kept(kept()), &file, &header, 64 << 20, true).unwrap();
    let long = u64::from_le_bytes(word(&two, moved.entry.0 + 16));
    assert!((long - 0xFFFF_FFFF_8100_0020).is_multiple_of(2 << 20));
}

#[test]
fn zeros_are_left_out_and_come_back_as_zeros() {
    let folder = Folder::new("zeros");
    let (store, identity) = folder.kernel("k", b"kernel");
    let mut image = vec![0u8; 64 << 20];
    // More pieces than there is room for in the head.
    for (index, at) in (0..image.len()).step_by(400 << 10).enumerate() {
        image[at] = index as u8 | 1;
    }
    let kernel = elf::Kernel {
        entry: 0x100_0000,
        file_bytes: 48 << 20,
    };
    let opened = Store::open(&store).unwrap();
    opened.keep(&identity, &image, &kernel).unwrap();
    let mut back = vec![0u8; image.len()];
    assert_eq!(opened.find(&identity).unwrap().put(&mut back), Ok(kernel));
    assert!(back == image);
}

#[test]
fn what_is_not_whole_not_ours_or_of_another_kernel_is_not_taken() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("strange");
    let (file, header) = zstd_image();
    let (store, identity) = folder.kernel("k", &file);
    keep(&store, &file, &header, &identity).unwrap();
    let opened = Store::open(&store).unwrap();
    let [path] = &folder.kept()[..] else {
        panic!("{:?}", folder.kept());
    };
    let whole = std::fs::read(path).unwrap();
    let mode = |mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let found = || opened.find(&identity).is_some();
    mode(0o622);
    assert!(!found(), "others may write to it");
    mode(0o600);
    assert!(found());
    for length in [0, 100, 4095, whole.len() - 1] {
        std::fs::write(path, &whole[..length]).unwrap();
        assert!(!found(), "cut at {length}");
    }
    // Every word of the head, one by one, made absurd: never a panic, whatever is thought of it.
    for at in (0..256).step_by(8) {
        let mut other = whole.clone();
        other[at..at + 8].fill(0xFF);
        std::fs::write(path, other).unwrap();
        if let Some(kept) = opened.find(&identity) {
            let ram = ram();
            let _ = unpack(&ram, Source::Kept(kept), &file, &header, 64 << 20, true);
        }
    }
    std::fs::write(path, &whole).unwrap();
    assert!(found());
    let (_, changed) = folder.kernel("k", b"another kernel");
    assert!(opened.find(&changed).is_none());
    std::fs::set_permissions(&store, PermissionsExt::from_mode(0o777)).unwrap();
    let error = Store::open(&store).unwrap_err().to_string();
    assert!(error.contains("this user alone"), "{error}");
}

#[test]
fn eight_kernels_are_kept_and_the_one_used_longest_ago_goes() {
    let folder = Folder::new("eight");
    let (file, header) = zstd_image();
    let mut identities = Vec::new();
    for number in 0..8 {
        let (store, identity) = folder.kernel(&format!("k{number}"), &file);
        keep(&store, &file, &header, &identity).unwrap();
        identities.push(identity);
        std::thread::sleep(std::time::Duration::from_millis(15));
    }
    let store = Store::open(&folder.0.join("store")).unwrap();
    assert!(store.find(&identities[0]).is_some(), "used again");
    std::thread::sleep(std::time::Duration::from_millis(15));
    let (path, identity) = folder.kernel("k8", &file);
    keep(&path, &file, &header, &identity).unwrap();
    assert_eq!(folder.kept().len(), 8);
    assert!(store.find(&identities[1]).is_none());
    assert!(store.find(&identities[0]).is_some() && store.find(&identity).is_some());
}
