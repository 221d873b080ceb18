//! KVM's statistics in the black box: a section for the VM and one for each vCPU, by KVM's own
//! names, whatever the host's kernel offers.

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use observe::{BlackBox, BlackBoxError, Block, Clock, Counter, Field, Gauge, Section, Unit};

use super::kvm_stats::{HEADER_BYTES, Header, Kind, Statistic, value};

/// Rows for statistics that only go up.
const TOTALS: usize = 64;
/// Rows for values of now.
const LEVELS: usize = 24;
/// Rows for histograms' buckets: three of 32 buckets on x86.
const BUCKETS: usize = 128;

/// The cells of a section.
#[repr(C)]
pub struct Table {
    /// When they were read.
    pub sampled_at: Gauge,
    /// Values that KVM offers and that have no row.
    pub omitted: Gauge,
    /// Statistics that only go up.
    pub totals: [Counter; TOTALS],
    /// Values of now.
    pub levels: [Gauge; LEVELS],
    /// Buckets of histograms.
    pub buckets: [Counter; BUCKETS],
}

const FIELDS: &[Field] = &[
    Field::gauge(
        "sampled_at",
        Unit::Ticks,
        offset_of!(Table, sampled_at),
        "When these were read from KVM.",
    ),
    Field::gauge(
        "omitted",
        Unit::None,
        offset_of!(Table, omitted),
        "Values that this host's KVM offers and that have no row here.",
    ),
    Field::counter(
        "total",
        Unit::None,
        offset_of!(Table, totals),
        "KVM's statistics that only go up, by its own names.",
    )
    .column(TOTALS, 8, "stat"),
    Field::gauge(
        "level",
        Unit::None,
        offset_of!(Table, levels),
        "KVM's statistics of now, by its own names.",
    )
    .column(LEVELS, 8, "stat_now"),
    Field::counter(
        "bucket",
        Unit::None,
        offset_of!(Table, buckets),
        "Buckets of KVM's histograms: NAME/INDEX, each twice as wide as the one before.",
    )
    .column(BUCKETS, 8, "bucket"),
];

/// KVM's statistics of the VM.
#[repr(transparent)]
pub struct KvmVmBlock(Table);

/// KVM's statistics of a vCPU.
#[repr(transparent)]
pub struct KvmVcpuBlock(Table);

// SAFETY: a transparent repr(C) struct of cells.
#[allow(unsafe_code)]
unsafe impl Section for KvmVmBlock {
    const KIND: &'static str = "kvm_vm";
    const INSTANCE: &'static [&'static str] = &[];
    const FIELDS: &'static [Field] = FIELDS;
}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Section for KvmVcpuBlock {
    const KIND: &'static str = "kvm_vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    const FIELDS: &'static [Field] = FIELDS;
}

/// A section whose cells are a [`Table`].
trait Cells {
    fn table(&self) -> &Table;
}

impl Cells for KvmVmBlock {
    fn table(&self) -> &Table {
        &self.0
    }
}

impl Cells for KvmVcpuBlock {
    fn table(&self) -> &Table {
        &self.0
    }
}

/// Which cell a value goes to.
enum Cell {
    Total(usize),
    Level(usize),
    Bucket(usize),
}

/// Statistics that are sampled into their section.
pub struct KvmSampler<T: Section> {
    file: File,
    data_at: u64,
    data: Vec<u8>,
    cells: Vec<(Statistic, usize, Cell)>,
    totals: [u64; TOTALS],
    buckets: [u64; BUCKETS],
    omitted: u64,
    block: Block<T>,
}

/// Rows that are named, and the cells of the values.
#[derive(Default)]
struct Rows {
    totals: Vec<String>,
    levels: Vec<String>,
    buckets: Vec<String>,
    cells: Vec<(Statistic, usize, Cell)>,
    omitted: u64,
}

impl Rows {
    fn of(statistics: Vec<Statistic>) -> Rows {
        let mut rows = Rows::default();
        for statistic in statistics {
            for index in 0..statistic.values {
                rows.add(&statistic, index);
            }
        }
        rows
    }

    fn add(&mut self, statistic: &Statistic, index: usize) {
        let (names, most) = match statistic.kind {
            Kind::Cumulative => (&mut self.totals, TOTALS),
            Kind::Level => (&mut self.levels, LEVELS),
            Kind::Histogram => (&mut self.buckets, BUCKETS),
        };
        let row = names.len();
        if row == most {
            self.omitted += 1;
            return;
        }
        let name = match statistic.kind {
            Kind::Histogram => format!("{}/{index}", statistic.name),
            _ if statistic.values > 1 => format!("{}/{index}", statistic.name),
            _ => statistic.name.clone(),
        };
        names.push(name);
        let cell = match statistic.kind {
            Kind::Cumulative => Cell::Total(row),
            Kind::Level => Cell::Level(row),
            Kind::Histogram => Cell::Bucket(row),
        };
        self.cells.push((statistic.clone(), index, cell));
    }
}

impl KvmSampler<KvmVmBlock> {
    /// Of the VM whose descriptor is `fd`. `None` where the host's KVM has no such statistics.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`].
    pub fn of_vm(
        fd: &impl AsRawFd,
        black_box: &mut BlackBox,
    ) -> Result<Option<Self>, BlackBoxError> {
        sampler(fd, black_box, "kvm_vm")
    }
}

impl KvmSampler<KvmVcpuBlock> {
    /// Of the vCPU whose descriptor is `fd`, as [`KvmSampler::of_vm`].
    ///
    /// # Errors
    /// [`BlackBoxError::Full`].
    pub fn of_vcpu(
        fd: &impl AsRawFd,
        index: usize,
        black_box: &mut BlackBox,
    ) -> Result<Option<Self>, BlackBoxError> {
        sampler(fd, black_box, &format!("kvm_vcpu/{index}"))
    }
}

fn sampler<T: Section>(
    fd: &impl AsRawFd,
    black_box: &mut BlackBox,
    name: &str,
) -> Result<Option<KvmSampler<T>>, BlackBoxError> {
    let described = statistics_file(fd).and_then(|file| describe(&file).map(|rest| (file, rest)));
    let (file, (data_at, statistics)) = match described {
        Ok(described) => described,
        Err(error) => {
            tracing::info!("{name}: KVM's statistics are not to be had: {error}");
            return Ok(None);
        }
    };
    let rows = Rows::of(statistics);
    let labels = [
        ("stat", &rows.totals[..]),
        ("stat_now", &rows.levels[..]),
        ("bucket", &rows.buckets[..]),
    ];
    let block = black_box.section::<T>(name, &labels)?;
    let end = rows
        .cells
        .iter()
        .map(|(of, index, _)| of.offset + index * 8 + 8);
    Ok(Some(KvmSampler {
        file,
        data_at,
        data: vec![0; end.max().unwrap_or(0)],
        cells: rows.cells,
        totals: [0; TOTALS],
        buckets: [0; BUCKETS],
        omitted: rows.omitted,
        block,
    }))
}

fn describe(file: &File) -> io::Result<(u64, Vec<Statistic>)> {
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, 0)?;
    let header =
        Header::parse(&head).ok_or_else(|| io::Error::other("no header that makes sense"))?;
    let mut descriptors = vec![0; header.descriptor_bytes()];
    file.read_exact_at(&mut descriptors, header.descriptors_at)?;
    Ok((header.data_at, header.statistics(&descriptors)))
}

/// The statistics file of a VM or a vCPU.
#[allow(unsafe_code)]
fn statistics_file(of: &impl AsRawFd) -> io::Result<File> {
    /// `_IO(KVMIO, 0xce)`.
    const KVM_GET_STATS_FD: libc::c_ulong = 0xAECE;
    // SAFETY: takes no argument and gives a new descriptor or -1.
    let fd = unsafe { libc::ioctl(of.as_raw_fd(), KVM_GET_STATS_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[allow(private_bounds)]
impl<T: Section + Cells> KvmSampler<T> {
    /// The row of the column `total` that has the statistic of that name.
    pub fn row(&self, name: &str) -> Option<usize> {
        self.cells.iter().find_map(|(of, _, cell)| match cell {
            Cell::Total(row) if of.name == name => Some(*row),
            _ => None,
        })
    }

    /// The row of the column `level` that has the statistic of that name.
    pub fn level_row(&self, name: &str) -> Option<usize> {
        self.cells.iter().find_map(|(of, _, cell)| match cell {
            Cell::Level(row) if of.name == name => Some(*row),
            _ => None,
        })
    }

    /// Reads all values: one system call. What cannot be read stays as it was.
    pub fn sample(&mut self) {
        if self
            .file
            .read_exact_at(&mut self.data, self.data_at)
            .is_err()
        {
            return;
        }
        let table = self.block.table();
        for (statistic, index, cell) in &self.cells {
            let Some(now) = value(&self.data, statistic, *index) else {
                continue;
            };
            match *cell {
                Cell::Total(row) => advance(&mut self.totals, &table.totals, row, now),
                Cell::Bucket(row) => advance(&mut self.buckets, &table.buckets, row, now),
                Cell::Level(row) => {
                    if let Some(gauge) = table.levels.get(row) {
                        gauge.set(now);
                    }
                }
            }
        }
        table.omitted.set(self.omitted);
        table.sampled_at.set(Clock::process().ticks());
    }
}

/// Brings a counter to `now`. KVM's own can be set back through debugfs: ours go on from there.
fn advance(before: &mut [u64], counters: &[Counter], row: usize, now: u64) {
    if let (Some(before), Some(counter)) = (before.get_mut(row), counters.get(row)) {
        counter.add(now.checked_sub(*before).unwrap_or(now));
        *before = now;
    }
}
