//! The rules of the driver that the mock holds, each broken once, and work that is done late.

use mock_libcuda::driver::*;
use mock_libcuda::launch::{LaunchAttribute, LaunchConfig};
use mock_libcuda::status::*;
use mock_libcuda::tensor_map::*;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::Mutex;

type Pointer = *mut c_void;

/// Adds 1 to 32 words.
const ADD: &str = "
    .version 8.0 .target sm_80 .address_size 64
    .visible .entry add(.param .u64 data) {
      .reg .b32 %r<3>; .reg .b64 %d<4>;
      ld.param.u64 %d1, [data];
      mov.u32 %r1, %tid.x;
      mul.wide.u32 %d2, %r1, 4;
      add.s64 %d3, %d1, %d2;
      ld.global.u32 %r2, [%d3];
      add.u32 %r2, %r2, 1;
      st.global.u32 [%d3], %r2;
      ret;
    }";

/// Copies 4 rows of 8 words of a tensor, from column 4 and row 2 on.
const COPY: &str = "
    .version 8.0 .target sm_90a .address_size 64
    .visible .entry copy(.param .align 64 .b8 map[128], .param .u64 to) {
      .reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %d<8>;
      .shared .align 128 .b8 rows[128]; .shared .align 8 .b64 full;
      mov.b64 %d1, map;
      cvta.param.u64 %d2, %d1;
      ld.param.u64 %d3, [to];
      mov.u64 %d6, rows;
      cvt.u32.u64 %r1, %d6;
      mov.u64 %d7, full;
      cvt.u32.u64 %r2, %d7;
      mov.u32 %r3, %tid.x;
      mov.u32 %r4, 4;
      mov.u32 %r5, 2;
      setp.ne.u32 %p1, %r3, 0;
      @%p1 bra begun;
      mbarrier.init.shared::cta.b64 [%r2], 1;
      mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
      cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d2, {%r4, %r5}], [%r2];
    begun:
      bar.sync 0;
    again:
      mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
      @!%p2 bra again;
      shl.b32 %r6, %r3, 2;
      add.u32 %r7, %r1, %r6;
      ld.shared.u32 %r8, [%r7];
      cvt.u64.u32 %d4, %r6;
      add.s64 %d5, %d3, %d4;
      st.global.u32 [%d5], %r8;
      ret;
    }";

/// A context and a stream. The device is the process's, so one test has it at a time.
struct Device {
    context: Pointer,
    stream: Pointer,
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn ok(code: c_int) {
    assert_eq!(code, SUCCESS);
}

/// The handle that a function writes.
fn made(create: impl FnOnce(*mut Pointer) -> c_int) -> Pointer {
    let mut handle = null_mut();
    ok(create(&mut handle));
    handle
}

impl Device {
    fn new() -> Self {
        // SAFETY: set before any other thread of the test reads it: `ONE_AT_A_TIME` is held.
        unsafe { std::env::set_var("MOCK_PTX", "/nowhere") };
        unsafe {
            let context = made(|to| cuDevicePrimaryCtxRetain(to, 0));
            ok(cuCtxSetCurrent(context));
            Self { context, stream: made(|to| cuStreamCreate(to, 1)) }
        }
    }

    fn allocate(&self, bytes: usize) -> u64 {
        let mut address = 0;
        ok(unsafe { cuMemAlloc_v2(&mut address, bytes) });
        address
    }

    fn module(&self) -> Pointer {
        self.module_of(ADD)
    }

    fn module_of(&self, text: &str) -> Pointer {
        let text = CString::new(text).unwrap();
        made(|to| unsafe { cuModuleLoadData(to, text.as_ptr().cast()) })
    }

    fn function(&self, module: Pointer) -> Pointer {
        made(|to| unsafe { cuModuleGetFunction(to, module, c"add".as_ptr()) })
    }

    fn launch(&self, function: Pointer, grid: u32, threads: u32, shared: u32, data: u64) -> c_int {
        self.launch_with(function, [grid, threads, shared], &mut [(&raw const data).cast_mut().cast()], &[])
    }

    fn launch_with(
        &self,
        function: Pointer,
        [grid, threads, shared]: [u32; 3],
        params: &mut [Pointer],
        attributes: &[LaunchAttribute],
    ) -> c_int {
        let (grid, block, stream) = ([grid, 1, 1], [threads, 1, 1], self.stream);
        let (attributes, count) = (attributes.as_ptr(), attributes.len() as u32);
        let config = LaunchConfig { grid, block, shared, stream, attributes, count };
        unsafe { cuLaunchKernelEx(&config, function, params.as_mut_ptr(), null_mut()) }
    }

    fn wait(&self) -> c_int {
        unsafe { cuStreamSynchronize(self.stream) }
    }

    fn words(&self, address: u64) -> [u32; 32] {
        let mut words = [0u32; 32];
        ok(unsafe { cuMemcpyDtoHAsync_v2(words.as_mut_ptr().cast(), address, 128, self.stream) });
        ok(self.wait());
        words
    }
}

/// Runs a test with the device.
fn alone(test: impl FnOnce(&Device)) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    test(&Device::new());
}

#[test]
fn work_is_late() {
    alone(|device| unsafe {
        let address = device.allocate(128);
        let mut late = 0;
        for round in 0..100u32 {
            let mut from = [round; 32];
            ok(cuMemcpyHtoDAsync_v2(address, from.as_ptr().cast(), 128, device.stream));
            // Against the rules of the copy: the bytes change before the wait.
            from.fill(1000);
            late += u32::from(device.words(address) == [1000; 32]);
            let mut to = [0u32; 32];
            ok(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), address, 128, device.stream));
            let early = to;
            ok(device.wait());
            assert!(early == to || early == [0xa5a5_a5a5; 32]);
        }
        assert!((20..100).contains(&late), "{late}");
        ok(cuMemFree_v2(address));
        assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
    });
}

#[test]
fn launches_and_graphs() {
    alone(|device| unsafe {
        let (address, module) = (device.allocate(128), device.module());
        let add = device.function(module);
        assert_eq!(add, device.function(module), "a function has one handle");
        ok(cuMemsetD8Async(address, 0, 128, device.stream));
        // The first launch loads the function, which a capture does not allow.
        ok(cuStreamBeginCapture_v2(device.stream, 1));
        assert_eq!(device.launch(add, 1, 32, 0, address), CAPTURE_UNSUPPORTED);
        let mut graph = null_mut();
        assert_eq!(cuStreamEndCapture(device.stream, &mut graph), CAPTURE_INVALIDATED);
        assert!(graph.is_null());
        ok(device.launch(add, 1, 32, 0, address));
        assert_eq!(device.words(address), [1; 32]);
        ok(cuStreamBeginCapture_v2(device.stream, 1));
        ok(device.launch(add, 1, 32, 0, address));
        ok(device.launch(add, 1, 32, 0, address));
        ok(cuStreamEndCapture(device.stream, &mut graph));
        assert_eq!(device.words(address), [1; 32], "what is captured is not done");
        let ready = made(|to| cuGraphInstantiateWithFlags(to, graph, 0));
        ok(cuGraphDestroy(graph));
        ok(cuGraphLaunch(ready, device.stream));
        ok(cuGraphLaunch(ready, device.stream));
        assert_eq!(device.words(address), [5; 32]);
        ok(cuGraphExecDestroy(ready));
        assert_eq!(cuGraphLaunch(ready, device.stream), INVALID_HANDLE);
        ok(cuModuleUnload(module));
        assert_eq!(device.launch(add, 1, 32, 0, address), INVALID_HANDLE);
    });
}

#[test]
fn limits_of_a_launch() {
    alone(|device| unsafe {
        let (address, module) = (device.allocate(128), device.module());
        let add = device.function(module);
        assert_eq!(device.launch(add, 0, 32, 0, address), INVALID_VALUE);
        assert_eq!(device.launch(add, 1, 1025, 0, address), INVALID_VALUE);
        assert_eq!(device.launch(add, 1, 32, (48 << 10) + 1, address), INVALID_VALUE);
        // Early launches are for compute capability 9.0 and later.
        let (early, mut params) =
            (LaunchAttribute { id: 6, padding: 0, value: [1; 8] }, [(&raw const address).cast_mut().cast()]);
        assert_eq!(device.launch_with(add, [1, 32, 0], &mut params, &[early]), INVALID_VALUE);
        assert_eq!(cuFuncSetAttribute(add, 8, 164 << 10), INVALID_VALUE);
        ok(cuFuncSetAttribute(add, 8, 64 << 10));
        ok(cuMemsetD8Async(address, 0, 128, device.stream));
        ok(device.launch(add, 1, 32, 64 << 10, address));
        ok(device.wait());
    });
}

#[test]
fn captures_forbid() {
    alone(|device| unsafe {
        let (address, mut graph) = (device.allocate(128), null_mut());
        let mut more = 0;
        let mut host = [0u8; 4];
        let event = made(|to| cuEventCreate(to, 2));
        for forbidden in [
            &mut || cuMemAlloc_v2(&mut more, 64) as c_int,
            &mut || cuMemFree_v2(address),
            &mut || device.wait(),
            &mut || cuEventSynchronize(event),
            &mut || cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), address, 4, device.stream),
            &mut || {
                let (context, stream) = (device.context as usize, device.stream as usize);
                let other = move || {
                    ok(cuCtxSetCurrent(context as Pointer));
                    cuMemsetD8Async(address, 0, 128, stream as Pointer)
                };
                std::thread::spawn(other).join().unwrap()
            },
        ] as [&mut dyn FnMut() -> c_int; 6]
        {
            ok(cuStreamBeginCapture_v2(device.stream, 1));
            assert_eq!(forbidden(), CAPTURE_UNSUPPORTED);
            assert_eq!(cuStreamEndCapture(device.stream, &mut graph), CAPTURE_INVALIDATED);
        }
        ok(cuStreamBeginCapture_v2(device.stream, 1));
        let (context, stream) = (device.context as usize, device.stream as usize);
        let other = move || {
            ok(cuCtxSetCurrent(context as Pointer));
            cuStreamEndCapture(stream as Pointer, &mut null_mut())
        };
        assert_eq!(std::thread::spawn(other).join().unwrap(), CAPTURE_WRONG_THREAD);
    });
}

/// A fault of one call, of all calls from one on, and a list that is set anew.
#[test]
fn planned_faults() {
    alone(|device| unsafe {
        // As above.
        let plan = |faults: &str| std::env::set_var("MOCK_FAULT", faults);
        let mut addresses = [0; 3];
        plan("cuMemAlloc_v2@2=2,cuMemsetD8Async@2+=1");
        assert_eq!(addresses.each_mut().map(|to| cuMemAlloc_v2(to, 64)), [SUCCESS, OUT_OF_MEMORY, SUCCESS]);
        let fill = |_| cuMemsetD8Async(addresses[0], 0, 64, device.stream);
        assert_eq!([(); 3].map(fill), [SUCCESS, INVALID_VALUE, INVALID_VALUE]);
        plan("cuMemsetD8Async@2=1");
        assert_eq!([(); 3].map(fill), [SUCCESS, INVALID_VALUE, SUCCESS]);
        plan("cuMemsetD8Async=700");
        assert_eq!([(); 2].map(fill), [ILLEGAL_ADDRESS; 2]);
        plan("");
        ok(fill(()));
        [addresses[0], addresses[2]].into_iter().for_each(|address| ok(cuMemFree_v2(address)));
    });
}

#[test]
fn times_of_events() {
    alone(|device| unsafe {
        let [timed, other, untimed] = [0, 1, 2].map(|flags| made(|to| cuEventCreate(to, flags)));
        assert_eq!(cuEventCreate(&mut null_mut(), 8), INVALID_VALUE);
        assert_eq!(cuEventCreate(&mut null_mut(), 4), INVALID_VALUE);
        for event in [timed, other, untimed] {
            ok(cuEventRecord(event, device.stream));
        }
        ok(device.wait());
        let mut time = 0.0;
        ok(cuEventElapsedTime(&mut time, timed, other));
        assert_eq!(cuEventElapsedTime(&mut time, timed, untimed), INVALID_HANDLE);
        assert_eq!(cuEventElapsedTime(&mut time, timed, device.stream), INVALID_HANDLE);
        ok(cuStreamBeginCapture_v2(device.stream, 1));
        assert_eq!(cuStreamBeginCapture_v2(device.stream, 1), CAPTURE_UNSUPPORTED);
        assert_eq!(cuStreamEndCapture(device.stream, &mut null_mut()), CAPTURE_INVALIDATED);
        assert_eq!(cuStreamBeginCapture_v2(device.context, 1), INVALID_HANDLE);
        assert_eq!(cuStreamEndCapture(device.context, &mut null_mut()), INVALID_HANDLE);
    });
}

#[test]
fn context_of_each_thread() {
    alone(|device| unsafe {
        let (address, stream) = (device.allocate(128), device.stream as usize);
        let other = move || cuMemsetD8Async(address, 0, 128, stream as Pointer);
        assert_eq!(std::thread::spawn(other).join().unwrap(), INVALID_CONTEXT);
        ok(cuMemsetD8Async(address, 0, 128, device.stream));
        assert_eq!(cuStreamSynchronize(device.context), INVALID_HANDLE);
        assert_eq!(cuMemsetD8Async(address, 0, 128, device.context), INVALID_HANDLE);
    });
}

#[test]
fn images_that_a_driver_refuses() {
    alone(|_| {
        let load = |driver: &str, capability: &str, text: &str| {
            // SAFETY: as above.
            unsafe {
                std::env::set_var("MOCK_DRIVER", driver);
                std::env::set_var("MOCK_CAPABILITY", capability);
                let text = CString::new(text).unwrap();
                let mut module = null_mut();
                let code = cuModuleLoadData(&mut module, text.as_ptr().cast());
                std::env::remove_var("MOCK_DRIVER");
                std::env::remove_var("MOCK_CAPABILITY");
                code
            }
        };
        let of = |version: &str, target: &str| ADD.replace("8.0", version).replace("sm_80", target);
        ok(load("12020", "80", &of("8.2", "sm_80")));
        assert_eq!(load("12020", "80", &of("8.3", "sm_80")), UNSUPPORTED_PTX_VERSION);
        ok(load("12080", "120", &of("8.7", "sm_80")));
        assert_eq!(load("12080", "120", &of("8.8", "sm_80")), UNSUPPORTED_PTX_VERSION);
        ok(load("13000", "90", &of("9.0", "sm_90a")));
        assert_eq!(load("13000", "100", &of("9.0", "sm_90a")), NO_BINARY_FOR_GPU);
        assert_eq!(load("13000", "80", &of("9.0", "sm_86")), NO_BINARY_FOR_GPU);
        assert_eq!(load("13000", "80", "no PTX"), INVALID_IMAGE);
    });
}

/// The arguments of a tiled map: a matrix of 6 rows of 10 floats, 48 bytes apart.
#[derive(Clone, Copy)]
struct Tiled {
    kind: c_int,
    rank: c_uint,
    address: u64,
    dims: [u64; 2],
    stride: u64,
    tile: [c_uint; 2],
    steps: [c_uint; 2],
    swizzle: c_int,
}

#[repr(C, align(64))]
struct Place(Words);

impl Tiled {
    fn at(address: u64) -> Self {
        Self { kind: 7, rank: 2, address, dims: [10, 6], stride: 48, tile: [8, 4], steps: [1; 2], swizzle: 0 }
    }

    fn encode(&self) -> Result<Words, c_int> {
        let Self { kind, rank, address, ref dims, ref stride, ref tile, ref steps, swizzle } = *self;
        let (dims, tile, steps) = (dims.as_ptr(), tile.as_ptr(), steps.as_ptr());
        let mut map = Place([0; 16]);
        match unsafe {
            cuTensorMapEncodeTiled(&mut map.0, kind, rank, address, dims, stride, tile, steps, 0, swizzle, 2, 0)
        } {
            SUCCESS => Ok(map.0),
            code => Err(code),
        }
    }
}

/// A launch finds the tensor again by the map's words.
#[test]
fn tensor_map_in_a_launch() {
    alone(|device| unsafe {
        std::env::set_var("MOCK_CAPABILITY", "90");
        let (from, to, module) = (device.allocate(6 * 48), device.allocate(128), device.module_of(COPY));
        std::env::remove_var("MOCK_CAPABILITY");
        let words: [u32; 72] = std::array::from_fn(|i| i as u32);
        ok(cuMemcpyHtoDAsync_v2(from, words.as_ptr().cast(), 6 * 48, device.stream));
        let copy = made(|to| cuModuleGetFunction(to, module, c"copy".as_ptr()));
        let map = Tiled::at(from).encode().unwrap();
        let bytes: [u64; 17] = std::array::from_fn(|i| map.get(i).copied().unwrap_or(to));
        let mut params = [(&raw const bytes).cast_mut().cast::<c_void>()];
        ok(device.launch_with(copy, [1, 32, 0], &mut params, &[]));
        // Columns 10 and 11 lie outside of the tensor.
        let want = |i: u32| if i % 8 < 6 { (2 + i / 8) * 12 + 4 + i % 8 } else { 0 };
        assert_eq!(device.words(to), std::array::from_fn(|i| want(i as u32)));
    });
}

#[test]
fn rules_of_tensor_maps() {
    alone(|_| broken_tensor_maps());
}

fn broken_tensor_maps() {
    let whole = Tiled::at(0x100);
    whole.encode().unwrap();
    let broken: [Tiled; 11] = [
        Tiled { kind: 13, ..whole },
        Tiled { rank: 6, ..whole },
        Tiled { rank: 0, ..whole },
        Tiled { address: 0x108, ..whole },
        Tiled { dims: [10, 0], ..whole },
        Tiled { stride: 40, ..whole },
        Tiled { stride: 1 << 40, ..whole },
        Tiled { tile: [8, 257], ..whole },
        Tiled { tile: [6, 4], ..whole },
        Tiled { tile: [12, 4], swizzle: 1, ..whole },
        Tiled { steps: [1, 9], ..whole },
    ];
    for (i, map) in broken.iter().enumerate() {
        assert_eq!(map.encode(), Err(INVALID_VALUE), "{i}");
    }
    let (dims, strides, steps) = ([64u64, 5, 4, 2], [128u64, 640, 2560], [1 as c_uint; 4]);
    let gather = |rank: c_uint, lower: [c_int; 2], channels: c_uint, pixels: c_uint| unsafe {
        let mut map = Place([0; 16]);
        let (dims, strides, steps, upper) = (dims.as_ptr(), strides.as_ptr(), steps.as_ptr(), [-1; 2]);
        let (lower, upper, map) = (lower.as_ptr(), upper.as_ptr(), &mut map.0);
        cuTensorMapEncodeIm2col(map, 6, rank, 0x100, dims, strides, lower, upper, channels, pixels, steps, 0, 3, 2, 0)
    };
    ok(gather(4, [-1; 2], 64, 128));
    for code in [
        gather(2, [-1; 2], 64, 128),
        gather(4, [-129, 0], 64, 128),
        gather(4, [0, 128], 64, 128),
        gather(4, [-1; 2], 0, 128),
        gather(4, [-1; 2], 64, 1025),
        // More than the swizzle takes.
        gather(4, [-1; 2], 72, 128),
    ] {
        assert_eq!(code, INVALID_VALUE);
    }
}
