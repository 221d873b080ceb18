#!/usr/bin/env bash
# Writes the seeds of the corpus, fuzz/corpus/TARGET/*: what a well-behaved guest or client says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/corpus"
mkdir -p api_bodies balloon_request blackbox_reader blk_request console_watch entropy http_request legacy_ports mmio_registers net_control pci_function trace_format trace_records virtqueue vsock walk stack

# Words, little-endian: le BYTES NUMBER...
le() {
  local bytes=$1 number i
  shift
  for number; do
    for ((i = 0; i < bytes; i++)); do
      printf "\\x$(printf %x $(((number >> (8 * i)) & 255)))"
    done
  done
}

# api_bodies: `METHOD TARGET ID`, then the body.
body() {
  printf '%s\n%s' "$2" "$3" >"api_bodies/$1"
}
body action 'PUT /actions x' '{"action_type":"InstanceStart"}'
body boot 'PUT /boot-source x' '{"kernel_image_path":"/k","initrd_path":null,"boot_args":"console=ttyS0"}'
body bucket 'GET /vm/config DEBUG' '{"size":1,"one_time_burst":2,"refill_time":0}'
body drive 'PUT /drives/rootfs rootfs' '{"drive_id":"rootfs","path_on_host":"/d","is_root_device":true,"is_read_only":true,"cache_type":"Writeback","io_engine":"Sync","partuuid":"0eaa91a0-01","rate_limiter":{"bandwidth":{"size":0,"refill_time":1},"ops":null}}'
body limiter 'PATCH /drives/a a' '{"bandwidth":{"size":1,"refill_time":1},"ops":{"size":1,"one_time_burst":9,"refill_time":1}}'
body logger 'PUT /logger warn' '{"log_path":"/l","level":"Warn","show_level":true,"show_log_origin":false,"module":"api"}'
body machine 'PUT /machine-config x' '{"vcpu_count":2,"mem_size_mib":256,"smt":false,"cpu_template":"None","track_dirty_pages":false,"huge_pages":"2M"}'
body more 'PATCH /machine-config x' '{"mem_size_mib":18446744073709551615,"huge_pages_fallback":false,"numa_node":1,"memory_nodes":[0],"cpu_affinity":{},"io_affinity":null}'
body network 'PUT /network-interfaces/eth0 06:00:AC:10:00:02' '{"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"06:00:ac:10:00:02","mtu":1500}'
body policy 'PUT /policy x' '{"thresholds":{"spin_ms":1500,"storm_share":0.5,"swapped_bytes":1},"restart":{"at_most":3,"within_ms":9,"first_wait_ms":0,"longest_wait_ms":8},"verdicts":{"guest-panic":["nmi",{"wait_ms":5},{"dump":"core","path":"/d"},"restart"],"exit-storm":["pause"]},"on_reboot":"restart"}'
body serial 'PUT /serial x' '{"serial_out_path":"/s","rate_limiter":{"size":0,"refill_time":0}}'
body state 'PATCH /vm?x=1#y x' '{"state":"Paused"}'

# entropy: a table of 16 buffers, then the available ring.
buffer() {
  le 8 "$1"
  le 4 "$2"
  le 2 "$3" "$4"
}
empty() {
  head -c $((16 * (16 - $1))) /dev/zero
}
{
  buffer 0x4000 64 2 0
  buffer 0x5000 100 3 2
  buffer 0x6000 9 2 0
  empty 3
  le 2 0 2 0 1
} >entropy/two
{
  buffer 0x4000 64 0 0
  empty 1
  le 2 0 1 0
} >entropy/refused
{
  buffer 0x100 700 2 0
  empty 1
  le 2 0 2 0 0
} >entropy/rings

# vsock: bytes of data, 1 for right addresses, a header: addresses, ports, bytes, type and operation, flags, room, taken.
packet() {
  le 1 "$1" 1
  le 8 3 2
  le 4 1234 80 "$1"
  le 2 1 "$2"
  le 4 "$3" 65536 0
}
{
  packet 0 1 0
  packet 100 5 0
  packet 0 4 3
} >vsock/connection
{
  packet 0 2 0
  packet 0 3 0
  packet 0 6 0
  packet 0 7 0
  packet 0 77 0
} >vsock/strays

# console_watch: what a guest says.
printf '%s\r\n' '[    1.234567] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:2:77]' \
  '[    2.345678][    T1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009' \
  '<3>INFO: task sh:12 blocked for more than 120 seconds.' >console_watch/lockups
printf '%s\n' '[   61.000001] I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 1' \
  'login: [   61.000002] oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/,task=a)b,pid=9,uid=0' \
  $'\e[1;31mOut of memory: Killed process 9 (a)b) total-vm:1kB\e[0m' $'\e]0;title' \
  'EXT4-fs (vda): Remounting filesystem read-only' >console_watch/mixed

# blackbox_reader: a directory, NUL, sections from byte 4096 on. Or a black box as it is.
{
  printf 'kind\tdisk\tdevice\n'
  printf 'field\tdisk\tnow\t4\t0\t0\t1\t0\t\tWhat its thread does.\n'
  printf 'field\tdisk\treads\t1\t0\t32\t1\t0\t\tReads served.\n'
  printf 'field\tdisk\terrors\t1\t0\t40\t3\t8\tstatus\tRequests that failed.\n'
  printf 'section\tdisk/rootfs\tdisk\t4096\t64\nlabels\tdisk/rootfs\tstatus\tioerr,,unsupp\n'
  printf '\0\3\2\1\0' && le 8 0 1 2 3 4 5 6 7
} >blackbox_reader/disk
{
  printf 'kind\tq\tdevice,queue\n'
  printf 'field\tq\tservice\t3\t1\t0\t1\t0\t\tTime.\nfield\tq\tevents\t5\t0\t0\t1\t0\t\tEvents.\n'
  printf 'field\tq\tsize\t2\t2\t8\t1\t0\t\tA gauge.\nfield\tq\tpages\t2\t3\t16\t2\t8\trow\tPages.\n'
  printf 'section\tq/net0/1\tq\t4096\t17000\nlabels\tq/net0/1\trow\ta,b\nsection\tq/net0/1\tq\t4097\t80\n\0'
  le 8 5 4 3 2 1 0
} >blackbox_reader/queue
{
  printf 'kind\tvcpu_samples\tvcpu\nfield\tvcpu_samples\tsamples\t6\t0\t0\t4\t24\t\tThe last ones.\n'
  printf 'column\tvcpu_samples\tsamples\tat\t2\t4\tWhen.\n'
  printf 'column\tvcpu_samples\tsamples\trun\t1\t1\tTime.\ncolumn\tvcpu_samples\tsamples\tsize\t2\t2\tA level.\n'
  printf 'section\tvcpu_samples/0\tvcpu_samples\t4096\t104\n\0'
  le 8 3 1000000000 5 6 2000000000 7 8 3000000000 9 8 0 0 0
} >blackbox_reader/series
{
  printf VITRBBOX && le 4 1 0 && le 8 4096 4096 64 80 64 7
} >blackbox_reader/header

# The sections that a report knows by name, in little: box FILE KIND SECTION ROWS FIELD..., where ROWS is what
# the rows of the fields with a + are called, and a FIELD is NAME:FIELDKIND:UNIT. Each word counts up.
box() {
  local file=$1 kind=$2 section=$3 rows=$4 at=0 field name form unit
  shift 4
  {
    printf 'kind\t%s\tdevice\n' "$kind"
    for field; do
      IFS=: read -r name form unit <<<"${field#+}"
      if [[ $field == +* ]]; then
        printf 'field\t%s\t%s\t%s\t%s\t%s\t2\t8\trow\t\n' "$kind" "$name" "$form" "$unit" "$at"
      else
        printf 'field\t%s\t%s\t%s\t%s\t%s\t1\t0\t\t\n' "$kind" "$name" "$form" "$unit" "$at"
      fi
      at=$((at + 8))
    done
    printf 'section\t%s\t%s\t4096\t%s\nlabels\t%s\trow\t%s\n\0' "$section" "$kind" $((at + 64)) "$section" "$rows"
    le 8 $(seq 1 $((at / 8 + 8)))
  } >"blackbox_reader/$file"
}
box vcpu vcpu vcpu/0 io_in,rootfs heartbeat:4:4 run:1:1 pauses:1:0 paused:1:1 +exits:1:0 \
  +device_reads:1:0 +device_writes:1:0 +device_misuse:1:0 +device_handler:1:1
box requests queue queue/rootfs/0 x size:2:0 in_flight:2:0 in_flight_since:2:4 kicks:1:0 requests:1:0 completions:1:0 \
  interrupts:1:0 read:1:2 written:1:2 broken:1:0 broken_reason:2:0 lost_kicks:1:0 starved:1:0 starved_since:2:4
box device device device/rootfs read,write activations:1:0 resets:1:0 needs_reset:1:0 host_errors:1:0 last_errno:2:0 \
  last_error_at:2:4 +operations:1:0 +operation_errors:1:0 +operation_bytes:1:2 +operation_service:1:1 +drops:1:0
box thread thread thread/vm idle heartbeat:4:4 loops:1:0 flight:5:0
box task task task vm,vcpu-0 sampled_at:2:4 missing:2:0 +cpu:1:1 +run_delay:1:1 +guest:1:1 +major_faults:1:0 \
  +minor_faults:1:0 +voluntary_switches:1:0 +involuntary_switches:1:0 +tid:2:0 +threads:2:0
box cgroup cgroup cgroup oom,max memory_version:2:0 cpu_version:2:0 memory_current:2:2 memory_swap:2:2 memory_max:2:2 \
  memory_limited:2:0 memory_high:2:2 memory_high_limited:2:0 +memory_events:1:0 cpu_usage:1:1 cpu_throttled:1:1 \
  cpu_throttled_periods:1:0 cpu_periods:1:0 cpu_quota:2:1 cpu_period:2:1 cpu_limited:2:0 moves:1:0
box memory memory memory 0x0,other sampled_at:2:4 missing:2:0 +resident:2:2 +swapped:2:2 +anonymous_huge:2:2 \
  +shared_huge:2:2 +hugetlb:2:2 +locked:2:2 +estimated:2:0
box psi psi psi cpu,io sampled_at:2:4 +some:1:1 +full:1:1 +some_avg10:2:0 +full_avg10:2:0 +missing:2:0
box host host host 2M,1G memory:2:2 memory_available:2:2 swap:2:2 swap_free:2:2 major_faults:1:0 swap_in:1:3 \
  swap_out:1:3 oom_kills:1:0 virtual:2:0 steal:1:1 +hugepages:2:0 +hugepages_free:2:0 +hugepages_reserved:2:0
box kvm kvm_vcpu kvm_vcpu/0 exits,halt_wait_ns sampled_at:2:4 omitted:2:0 +total:1:0 +level:2:0 +bucket:1:0

# balloon_request: pages below and above the hole, then page numbers or statistics.
{ le 1 16 16 && le 4 3 2 1 1 15 16 1048576 1048592; } >balloon_request/pages
{ le 1 0 0 && le 4 0 -1; } >balloon_request/outside
{ le 1 16 0 && le 2 4 && le 8 4096 && le 2 15 && le 8 -1 && le 2 99 && le 8 1; } >balloon_request/statistics

# blk_request: header, bytes from and for the guest, sectors, what the disk can, a range (sector,
# sectors, flags), its id.
request() {
  { le 4 "$2" 0 && le 8 "$3" "$4" "$5" 8 && le 1 "$6" && le 8 1 && le 4 "${7:-7}" "${8:-0}" && printf 'rootfs'; } >"blk_request/$1"
}
request read 0 7 0 512 2
request write 1 0 4096 0 2
request refused 1 0 512 0 1
request flush 4 0 0 0 2
request id 8 0 0 20 0
request discard 11 0 16 0 4
request discard_beyond 11 0 16 0 4 8
request zeroes 13 0 16 0 4 7 1
request zeroes_read_only 13 0 16 0 1
request far 0 -1 0 512 0

# http_request: one byte says how the rest is cut.
http() {
  printf "$2" >"http_request/$1"
}
http get '\6GET /version HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n'
http put '\1PUT /actions HTTP/1.1\r\nContent-Length: 31\r\n\r\n{"action_type":"InstanceStart"}'
http chunks '\2PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n{"sta\r\n3\r\nte"\r\n0\r\nA: b\r\n\r\n'
http expect '\11PATCH /vm HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}'
http two '\4\r\nGET / HTTP/1.0\r\n\r\nGET http://localhost/vm/config?x HTTP/1.1\nConnection: a, Close\n\n'
http large '\7PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n'
http both '\7PUT / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx'
# FFh TIMES BYTE: 128 * TIMES bytes.
http trailers '\100PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: \377\200a\r\n\r\n'
http extension '\100PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0;\377\200a\r\n\r\n'
http head '\100PUT / HTTP/1.1\r\nx: \377\200a\r\n\r\n'

# legacy_ports: what (0 reads, 3 writes, 6 writes often, 7 comes from the host), where, value.
legacy() {
  local to=legacy_ports/$1
  shift
  le 1 "$@" >"$to"
}
legacy serial 3 0x03 0x83 3 0x00 12 3 0x01 0 3 0x03 3 3 0x01 0x0F 3 0x00 65 0 0x05 0 0 0x02 0 7 2 88 0 0 0 3 4 0x10 3 0 1 0 0 0
legacy full 3 1 2 6 0 255 6 0 255 6 0 255 6 0 20 0 5 0 0 2 0 3 3 0x83 7 4 255 7 3 9 7 5 255 3 0 1
legacy keyboard 3 0x14 0x20 0 0x10 0 3 0x14 0x60 3 0x10 0x65 3 0x10 0xF2 0 0x14 0 0 0x10 0 0 0x10 0 7 7 0 0 0x10 0 3 0x10 0xED 3 0x10 7 0 0x11 0 3 0x11 0xFD 3 0x14 0xFE
legacy clock 3 0x20 0x0A 0 0x21 0 3 0x20 0x0B 3 0x21 6 3 0x20 0 0 0x21 0 3 0x20 9 0 0x21 0 3 0x20 0x32 0 0x21 0 3 0x20 0x80 3 0x21 0xFF
legacy power 3 0x30 0x34 3 0x32 6 0 0x31 0 3 0x30 0x2C 3 0x40 1 0xC3 0x40 1 3 0x50 0x42 0 0x50 0 0xE0 0x00 0

# pci_function: `what where value`: 0x80 writes the configuration space, 0x81 the MSI-X table.
function_() {
  local to=pci_function/$1
  shift
  while (($#)); do
    le 1 "$1" && le 2 "$2" && le 8 "$3"
    shift 3
  done >"$to"
}
function_ size 0x80 4 0 0x80 0x10 0xffffffff 0x80 0x14 0xffffffff 0x80 0x10 0xe8000004 0x80 0x14 0 0x80 4 6
function_ messages 0x40 0x42 0xc000 0x81 0 0xfee01000 0x81 4 0 0x81 8 0x41 0x81 12 0 0x40 0x42 0x8000 0x81 12 1
function_ move 0x80 0x10 0xd0000000 0x40 0x10 0xffff 0xc1 1 1 0x81 0x30 0 0x80 0x34 0xffffffff

# mmio_registers: what the device offers, then `what where value`: 0x40 reads, 0x42 writes, 0x41
# ends a reset.
registers() {
  local to=mmio_registers/$1
  shift
  {
    le 1 3
    while (($#)); do
      le 1 "$1" "$2" && le 4 "$3"
      shift 3
    done
  } >"$to"
}
start=(0x42 0x70 0 0x42 0x70 1 0x42 0x70 3 0x42 0x14 1 0x40 0x10 0 0x42 0x24 1 0x42 0x20 1 0x42 0x24 0
  0x42 0x20 0x30000000 0x42 0x70 11 0x40 0x70 0 0x42 0x30 0 0x40 0x34 0 0x42 0x38 16 0x42 0x80 0x1000
  0x42 0x84 0 0x42 0x90 0x2000 0x42 0xa4 1 0x42 0xa0 0x3000 0x42 0x44 1 0x40 0x44 0 0x42 0x70 15)
registers start "${start[@]}"
registers reset "${start[@]}" 0x42 0x50 0 0x40 0x60 3 0x42 0x64 3 0x42 0x70 0 0x42 0x30 1 0x41 0 1 0x42 0x70 0 0x41 0 0
registers odd 0x40 0xfc 9 0x40 0xb0 0 0x42 0xac 1 0x00 0x71 0 0x20 0x1f 0xFFFFFFFF 0x42 0x70 131 0x42 0x44 0

# net_control: pairs, class, command, data.
le 1 4 4 0 2 0 >net_control/pairs
le 1 2 4 0 3 0 >net_control/more
le 1 1 4 0 1 0 >net_control/one
le 1 2 0 0 1 >net_control/promiscuous

# virtqueue: layout, size, 32 bytes of script, then memory from 0x100 on: the available ring,
# descriptors at the next multiple of 16, the used ring.
descriptor() {
  le 8 "$1" && le 4 "$2" && le 2 "$3" "$4"
}
script() {
  le 1 "$@"
  head -c $((32 - $#)) /dev/zero
}
# 4 descriptors: the table is at 0x110.
{
  le 1 0 2 && script 0 9 11 7 3 5 8 0 7 1 0 9 4 2 8 0
  le 2 0 2 0 2 0 0 0 0
  descriptor 0x1000 16 1 1 && descriptor 0x2000 512 3 3 && descriptor 0x3000 16 0 0 && descriptor 0x4000 1 2 0
} >virtqueue/chain
{
  le 1 1 2 && script 2 9 11 255 5 9 2 9 4 3 8 0 10 1 13 3 0 9 6 0
  le 2 0 1 0 0 0 0 0 0
  descriptor 0x150 48 4 0 && head -c 48 /dev/zero
  descriptor 0x1000 16 1 1 && descriptor 0x2000 512 3 2 && descriptor 0x4000 1 2 0
} >virtqueue/indirect
{
  le 1 0 2 && script 0 9 8 0
  le 2 0 1 0 0 0 0 0 0
  descriptor 0x1000 16 1 1 && descriptor 0x1000 16 1 0
} >virtqueue/loop
{
  le 1 2 3 && script 0 9 11 7 4 3 7 8 0 255 2 255 4 1 12 2 0 9
  le 2 0 1 0 0 0 0 0 0
} >virtqueue/overlap
{
  le 1 4 1 && script 0 9 4 1 8 0 7 1 0 9 3 1
  le 2 0 1 0 0 0 0 0 0
  descriptor 0xFFF0 16 2 0
} >virtqueue/edge

# trace_format: a format file, NUL, a record.
{
  printf 'name: kvm_exit\nID: 7\nformat:\n'
  printf '\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n'
  printf '\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n'
  printf '\tfield:unsigned long guest_rip;\toffset:8;\tsize:8;\tsigned:0;\n'
  printf '\tfield:char name[16];\toffset:16;\tsize:16;\tsigned:0;\n\nprint fmt: "%%d"\n\0'
  le 2 7 0 && le 4 99 && le 8 4096 1 2
} >trace_format/exit

# trace_records: type, misc, size, body.
{
  le 4 9 && le 2 0 44 && le 4 1 2 && le 8 1000 && le 4 3 0 8 && le 8 7
  le 4 2 && le 2 0 24 && le 8 4 77
  le 4 5 && le 2 0 8
} >trace_records/all

# walk: CR0, CR3, CR4, EFER, an address, then RAM: here one page that is all tables.
{
  le 8 0x80000001 0 0 0x500 0x8080600010
  le 8 0 3 3 0x83
} >walk/large
{
  le 8 0x80000001 0 0 0x500 8
  le 8 3
} >walk/itself
{
  le 8 0x80000001 0 0x1000 0x500 8
  le 8 3
} >walk/five
{
  le 8 1 0 0 0 4
  le 8 0x1122334455667788
} >walk/flat

# stack: delta, unwind tables from, to, entries, text from, to, RIP, RSP, RBP, RDI, modules, address; RAM.
# Two functions at 0x100 and 0x200: the first is called, the second ends the stack.
{
  le 8 0 0 8 8 0x100 0x300 0x110 0x40 0x50 0 0x58 0xffffffffc0000010
  le 8 0 0 0 0
  le 4 0x100 0x1fc
  le 2 8 0
  le 1 5 2
  le 2 0 0
  le 1 0 1
  head -c 44 /dev/zero
  le 8 0x210 0x110 0x60 0x110 0
} >stack/orc
{
  le 8 0 0 0 0 0x100 0x300 0x110 0 0x10 0
  le 8 0 0 0 0 0 0
  le 8 7 0x120 0x20 0x130 0 0x140
} >stack/pointers
