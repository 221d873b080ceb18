//! Rows that say what the guest made, what we count and what KVM counts; printed, then judged.

use std::fs;
use std::io::Write;

/// What KVM's number is to be, seen from what the guest made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// As many, or as many more as the row allows.
    All,
    /// No more than those: the CPU does the rest without KVM.
    AtMost,
}

/// One thing.
#[derive(Clone, Debug)]
pub struct Row {
    what: &'static str,
    stat: &'static str,
    made: u64,
    kept: u64,
    ours: Option<u64>,
    user_exits: Option<u64>,
    kvm: Option<u64>,
    more: u64,
    less: u64,
    counts: Kvm,
}

impl Row {
    /// `stat` is KVM's name, or "" where KVM has no part in it.
    pub fn new(what: &'static str, stat: &'static str, kvm: Option<u64>) -> Row {
        Row {
            what,
            stat,
            made: 0,
            kept: 0,
            ours: None,
            user_exits: None,
            kvm,
            more: 0,
            less: 0,
            counts: Kvm::All,
        }
    }

    /// How many the guest made.
    pub fn made(self, made: u64) -> Row {
        Row { made, ..self }
    }

    /// So many of them KVM serves by itself: we do not see those.
    pub fn kept(self, kept: u64) -> Row {
        Row { kept, ..self }
    }

    /// How many we counted ourselves.
    pub fn ours(self, ours: u64) -> Row {
        let ours = Some(ours);
        Row { ours, ..self }
    }

    /// KVM handles them, so that they may make no user exit; these are there.
    pub fn in_kernel(self, user_exits: u64) -> Row {
        let user_exits = Some(user_exits);
        Row { user_exits, ..self }
    }

    /// So many more are fine.
    pub fn or_more(self, more: u64) -> Row {
        Row { more, ..self }
    }

    /// So many fewer of ours are fine.
    pub fn or_less(self, less: u64) -> Row {
        Row { less, ..self }
    }

    /// What KVM counts of them.
    pub fn kvm_counts(self, counts: Kvm) -> Row {
        Row { counts, ..self }
    }

    /// The row as text.
    fn line(&self, hardware: bool) -> String {
        let number =
            |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let Row {
            what, stat, made, ..
        } = self;
        let note = match self.kvm {
            None | Some(0) if !stat.is_empty() && *made > 0 && !hardware => {
                "  (not counted: no hardware virtualisation)"
            }
            _ if self.counts == Kvm::AtMost => "  (the CPU delivers most without KVM)",
            _ => "",
        };
        let (ours, kvm) = (number(self.ours.or(self.user_exits)), number(self.kvm));
        format!("  {what:<48} {made:>8} {ours:>8} {kvm:>8}  {stat}{note}\n")
    }

    /// What is wrong with the row, on hardware or not.
    fn fault(&self, hardware: bool) -> Option<String> {
        let Row { what, stat, .. } = self;
        let (made, most) = (self.made, self.made + self.more);
        let (first, last) = (made - self.kept - self.less, most - self.kept);
        if self
            .ours
            .is_some_and(|ours| !(first..=last).contains(&ours))
        {
            return Some(format!("{what}: ours is not {first} to {last}: {self:?}"));
        }
        if self.user_exits.is_some_and(|exits| exits != 0) {
            return Some(format!("{what}: they are KVM's, and left for us: {self:?}"));
        }
        let least = if self.counts == Kvm::All { made } else { 0 };
        match self.kvm {
            _ if stat.is_empty() => None,
            None | Some(0) if !hardware => None,
            Some(kvm) if (least..=most).contains(&kvm) => None,
            _ => Some(format!("{stat} is not {least} to {most}: {self:?}")),
        }
    }
}

/// Prints the rows under `title`, then fails if one of them is wrong.
pub fn check(title: &str, rows: &[Row]) {
    let hardware = on_hardware();
    let mut text = format!(
        "\n{title:<50} {:>8} {:>8} {:>8}  KVM's name\n",
        "made", "ours", "KVM's"
    );
    for row in rows {
        text += &row.line(hardware);
    }
    say(&text);
    let faults: Vec<String> = rows.iter().filter_map(|row| row.fault(hardware)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Shows it also when the test passes: what a test prints is kept back then, what goes to the
/// descriptor is not.
pub fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Whether KVM has hardware virtualisation to run guests with.
pub fn on_hardware() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
    flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// Whether the CPU may deliver interrupts to the guest without KVM (APICv, AVIC).
pub fn cpu_delivers_interrupts() -> bool {
    let yes =
        |path: &str| fs::read_to_string(path).is_ok_and(|text| ["Y", "1"].contains(&text.trim()));
    yes("/sys/module/kvm_intel/parameters/enable_apicv")
        || yes("/sys/module/kvm_amd/parameters/avic")
}

/// While it lives, this process gets no transparent huge pages, so a page touched is a fault.
pub struct SmallPages;

impl SmallPages {
    pub fn only() -> SmallPages {
        assert_eq!(SmallPages::set(1), 0, "{}", std::io::Error::last_os_error());
        SmallPages
    }

    fn set(disable: libc::c_ulong) -> libc::c_int {
        let none: libc::c_ulong = 0;
        // SAFETY: a process attribute; it takes no pointer.
        #[allow(unsafe_code)]
        unsafe {
            libc::prctl(libc::PR_SET_THP_DISABLE, disable, none, none, none)
        }
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        SmallPages::set(0);
    }
}

#[test]
fn a_row_is_judged_by_what_the_guest_made() {
    let row = |kvm| Row::new("x", "x_exits", kvm).made(10).or_more(2);
    let wrong = |row: &Row| row.fault(true).is_some();
    for (kvm, expected) in [
        (None, true),
        (Some(9), true),
        (Some(10), false),
        (Some(12), false),
    ] {
        assert_eq!(wrong(&row(kvm)), expected, "{kvm:?}");
    }
    assert!(wrong(&row(Some(13))));
    assert!(wrong(&row(Some(10)).ours(9)));
    assert!(wrong(&row(Some(10)).in_kernel(1)));
    assert!(wrong(&row(Some(10)).ours(10).kept(3)));
    assert!(!wrong(&row(Some(10)).ours(7).kept(3)));
    assert!(!wrong(&row(Some(10)).ours(9).or_less(1)));
    assert!(wrong(&row(Some(9)).ours(10).or_less(1)));
    assert!(!wrong(&row(Some(3)).kvm_counts(Kvm::AtMost)));
    assert!(row(Some(0)).fault(false).is_none());
    assert!(row(Some(9)).fault(false).is_some());
}
