//! Building a machine from a spec, in named steps.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use devices::bus::{Bus, BusDevice, BusKind};
use devices::legacy::{
    CMOS_BYTES, Cmos, Console, ConsoleBlock, ConsoleInput, ConsoleKey, ConsoleOutput, ConsoleWatch,
    DEBUG_EXIT_BYTES, DEBUG_EXIT_PORT, DebugExit, I8042, I8042_BYTES, POST_PORT, POWER_BYTES,
    PostCodes, Power, Pvpanic, PvpanicBlock, SERIAL_BYTES, Serial, WatchBlock,
};
use kvm_bindings::kvm_pit_config;
use kvm_ioctls::VmFd;
use memory::GuestRam;
use memory::layout::KVM_TSS_BASE;
use observe::blackbox::End;
use observe::{BlackBox, Clock};

use super::facts::MachineBlock;
use super::{
    CMOS_PORT, I8042_GSI, I8042_PORT, Machine, POWER_PORT, PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT,
    processors, virtio, watch,
};
use crate::boot;
use crate::driver::Message;
use crate::hypervisor::{self, Hypervisor, refused};
use crate::lifecycle::VmCommand;
use crate::spec::{SerialInput, SerialOutput, SerialSpec, VmSpec};
use crate::vcpu::exit::Buses;
use crate::vcpu::thread::panic_text;
use crate::vm::LaunchError;
use crate::watcher::Watcher;
use crate::watcher::judge::Owner;

impl Machine {
    /// Builds the machine; nothing runs yet. The black box of a machine that cannot be built says
    /// so and is removed.
    ///
    /// # Errors
    /// [`LaunchError`]; all that was made is gone again.
    pub fn build(
        spec: &VmSpec,
        mut black_box: BlackBox,
        owner: &Owner,
    ) -> Result<Machine, LaunchError> {
        match assemble(spec, &mut black_box, owner) {
            Ok(parts) => Ok(parts.into_machine(spec, black_box)),
            Err(error) => {
                black_box.finish(End::Failed, &error.to_string());
                black_box.remove();
                Err(error)
            }
        }
    }
}

/// A machine without its black box.
struct Parts {
    vcpus: Vec<crate::vcpu::VcpuHandle>,
    io_threads: Vec<devices::virtio::IoThread>,
    balloon: Option<devices::virtio::BalloonHandle>,
    console: Console,
    watcher: Watcher,
    keyboard: Arc<I8042>,
    debug_exit: Arc<DebugExit>,
    block: observe::Block<devices::virtio::ThreadBlock>,
    facts: observe::Block<MachineBlock>,
    buses: Arc<Buses>,
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

impl Parts {
    fn into_machine(self, spec: &VmSpec, black_box: BlackBox) -> Machine {
        Machine {
            vcpus: self.vcpus,
            io_threads: self.io_threads,
            balloon: self.balloon,
            console: Some(self.console),
            watcher: Some(self.watcher),
            keyboard: self.keyboard,
            debug_exit: self.debug_exit,
            pulse: black_box.pulse(),
            deadline: spec.stop_deadline,
            black_box,
            keep_black_box: spec.black_box.keep,
            block: self.block,
            facts: self.facts,
            clock: Clock::process(),
            _buses: self.buses,
            _vm: self.vm,
            ram: self.ram,
        }
    }
}

fn assemble(spec: &VmSpec, black_box: &mut BlackBox, owner: &Owner) -> Result<Parts, LaunchError> {
    let hypervisor = Hypervisor::open()?;
    let ram = Arc::new(memory::build(&spec.memory)?);
    let placement = virtio::placement(spec);
    let cmdline = boot::cmdline::compose(spec, &placement)?;
    let load = || {
        let rsdp = boot::acpi::write(&ram, spec.vcpus, &placement)?;
        boot::load(&ram, &spec.boot, &cmdline, (rsdp, &placement))
    };
    // The kernel takes longest, and nothing else needs it before the vCPUs do.
    let (loaded, made) = std::thread::scope(|scope| {
        let loading = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn_scoped(scope, load)
            .map_err(|source| LaunchError::Refused {
                what: "a thread to load the kernel",
                source,
            })?;
        let made = make(&hypervisor, spec, &ram, black_box, owner);
        let loaded = loading.join().map_err(|panic| {
            let text = panic_text(panic.as_ref());
            LaunchError::Thread(format!("loading the kernel panicked: {text}"))
        })?;
        Ok::<_, LaunchError>((loaded, made))
    })?;
    let (made, loaded) = (made?, loaded?);
    tracing::info!(
        "kernel {} ({:?}), command line: {cmdline}",
        spec.boot.kernel.display(),
        loaded.format
    );
    if let Some(first) = made.fds.first() {
        processors::begin_at(first, &ram, loaded.start)?;
    }
    let vcpus = processors::spawn(&made.vm, made.fds, made.blocks, &made.buses, &owner.inbox)?;
    Ok(Parts {
        vcpus,
        io_threads: made.io_threads,
        balloon: made.balloon,
        console: made.console,
        watcher: made.watcher,
        keyboard: made.legacy.keyboard,
        debug_exit: made.legacy.debug_exit,
        block: made.block,
        facts: made.facts,
        buses: made.buses,
        vm: made.vm,
        ram,
    })
}

/// All of a machine that does not need the kernel.
struct Made {
    fds: Vec<kvm_ioctls::VcpuFd>,
    blocks: Vec<observe::Block<crate::vcpu::counters::VcpuBlock>>,
    io_threads: Vec<devices::virtio::IoThread>,
    balloon: Option<devices::virtio::BalloonHandle>,
    console: Console,
    watcher: Watcher,
    legacy: Legacy,
    block: observe::Block<devices::virtio::ThreadBlock>,
    facts: observe::Block<MachineBlock>,
    buses: Arc<Buses>,
    vm: Arc<VmFd>,
}

fn make(
    hypervisor: &Hypervisor,
    spec: &VmSpec,
    ram: &Arc<GuestRam>,
    black_box: &mut BlackBox,
    owner: &Owner,
) -> Result<Made, LaunchError> {
    let vm = Arc::new(hypervisor.create_vm()?);
    hypervisor::give_memory(&vm, ram)?;
    make_interrupt_controllers(hypervisor, &vm)?;
    let commands = VmCommand::names();
    let block = black_box.section("thread/vm", &[("reason", &commands)])?;
    let mut buses = Buses {
        pio: Bus::new(BusKind::Pio),
        mmio: Bus::new(BusKind::Mmio),
    };
    let legacy = make_legacy_devices(&vm, &mut buses.pio)?;
    let panics = owner.inbox.clone();
    let pvpanic = Pvpanic::new(
        PvpanicBlock::place(black_box)?,
        // The vm thread is gone only when the VM is.
        Box::new(move |kind| drop(panics.send(Message::Panic(kind)))),
    );
    put(
        &mut buses.pio,
        (PVPANIC_PORT, 1),
        "pvpanic",
        Arc::new(pvpanic),
    )?;
    let virtio::Made {
        threads: io_threads,
        kicks,
        balloon,
    } = virtio::make(spec, &vm, ram, &mut buses.mmio, black_box, &owner.inbox)?;
    let serial = Arc::clone(&legacy.serial);
    let blocks = processors::blocks(black_box, spec.vcpus, &buses)?;
    let console = make_console(&spec.serial, serial, black_box, &owner.inbox)?;
    let fds = processors::make(hypervisor, &vm, spec)?;
    Ok(Made {
        watcher: watch::watcher(spec, &vm, &fds, (ram, kicks), black_box, owner)?,
        blocks,
        console,
        fds,
        io_threads,
        balloon,
        legacy,
        block,
        facts: MachineBlock::place(black_box, spec)?,
        buses: Arc::new(buses),
        vm,
    })
}

fn make_interrupt_controllers(hypervisor: &Hypervisor, vm: &VmFd) -> Result<(), LaunchError> {
    vm.set_tss_address(KVM_TSS_BASE as usize)
        .map_err(refused("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(refused("KVM_CREATE_IRQCHIP"))?;
    if hypervisor.needs_pit() {
        vm.create_pit2(kvm_pit_config::default())
            .map_err(refused("KVM_CREATE_PIT2"))?;
    }
    Ok(())
}

struct Legacy {
    serial: Arc<Serial>,
    keyboard: Arc<I8042>,
    debug_exit: Arc<DebugExit>,
}

fn make_legacy_devices(vm: &VmFd, pio: &mut Bus) -> Result<Legacy, LaunchError> {
    let failed = |device: &'static str| {
        move |source: std::io::Error| LaunchError::Device {
            device: device.to_owned(),
            detail: format!("the host refused an eventfd: {source}; raise RLIMIT_NOFILE"),
        }
    };
    let serial = Arc::new(Serial::new().map_err(failed("serial"))?);
    let keyboard = Arc::new(I8042::new().map_err(failed("i8042"))?);
    let debug_exit = Arc::new(DebugExit::default());
    let interrupts = [
        (serial.interrupt_event(), SERIAL_GSI),
        (keyboard.interrupt_event(), I8042_GSI),
    ];
    for (event, gsi) in interrupts {
        vm.register_irqfd(event, gsi)
            .map_err(refused("KVM_IRQFD"))?;
    }
    let devices: [(u16, u64, &str, Arc<dyn BusDevice>); 6] = [
        (
            SERIAL_PORT,
            SERIAL_BYTES,
            "serial",
            Arc::clone(&serial) as _,
        ),
        (I8042_PORT, I8042_BYTES, "i8042", Arc::clone(&keyboard) as _),
        (CMOS_PORT, CMOS_BYTES, "cmos", Arc::new(Cmos::default())),
        (POST_PORT, 1, "post", Arc::new(PostCodes::default())),
        (
            DEBUG_EXIT_PORT,
            DEBUG_EXIT_BYTES,
            "debug-exit",
            Arc::clone(&debug_exit) as _,
        ),
        (POWER_PORT, POWER_BYTES, "power", Arc::new(Power)),
    ];
    for (port, bytes, name, device) in devices {
        put(pio, (port, bytes), name, device)?;
    }
    Ok(Legacy {
        serial,
        keyboard,
        debug_exit,
    })
}

/// Puts a device at so many ports from the first on.
fn put(
    pio: &mut Bus,
    (port, bytes): (u16, u64),
    name: &str,
    device: Arc<dyn BusDevice>,
) -> Result<(), LaunchError> {
    pio.insert(u64::from(port), bytes, name, device)
        .map(drop)
        .map_err(|error| LaunchError::Device {
            device: name.to_owned(),
            detail: error.to_string(),
        })
}

fn make_console(
    spec: &SerialSpec,
    serial: Arc<Serial>,
    black_box: &mut BlackBox,
    inbox: &Sender<Message>,
) -> Result<Console, LaunchError> {
    let failed = |detail: String| LaunchError::Device {
        device: "serial console".to_owned(),
        detail,
    };
    let input = match spec.input {
        SerialInput::Nothing => Ok(ConsoleInput::Nothing),
        SerialInput::Stdin => ConsoleInput::stdin(),
        SerialInput::Terminal => ConsoleInput::terminal(),
    };
    let output = match &spec.output {
        SerialOutput::Nothing => Ok(ConsoleOutput::Nothing),
        SerialOutput::Stdout => ConsoleOutput::stdout(),
        SerialOutput::File(path) => ConsoleOutput::path(path),
    };
    let input = input.map_err(|e| failed(format!("standard input cannot be used: {e}")))?;
    let output = output.map_err(|e| match &spec.output {
        SerialOutput::File(path) => failed(format!("{} cannot be opened: {e}", path.display())),
        _ => failed(format!("standard output cannot be used: {e}")),
    })?;
    let block = ConsoleBlock::place(black_box)?;
    let messages = inbox.clone();
    let on_message = move |message| drop(messages.send(Message::Guest(message)));
    let watch = ConsoleWatch::new(WatchBlock::place(black_box)?, Box::new(on_message));
    let keys = inbox.clone();
    let on_key = Box::new(move |key: ConsoleKey| match key {
        // The vm thread is gone only when the VM is.
        ConsoleKey::Stop => drop(keys.send(Message::StopKey)),
    });
    let (watch, limit) = (Some(watch), spec.limit);
    let spawned = Console::spawn(serial, input, output, block, Some(on_key), watch, limit);
    spawned.map_err(|e| failed(e.to_string()))
}
