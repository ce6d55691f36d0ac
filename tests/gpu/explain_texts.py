"""Texts as people paste them, written for these tests in the layouts that programs print.

Each row: name, text, the diagnosis that is right, and what the remedy must and must not name.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Pasted:
    name: str
    diagnosis: str
    text: str
    variants: tuple[str, ...] = ()
    bad_variants: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


_SMI = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {smi:<10}             Driver Version: {driver:<10}     CUDA Version: {cuda:<5}    |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
|=========================================+========================+======================|
|   0  {name:<30}  Off |   00000000:01:00.0  On |                  N/A |
|  0%   41C    P8             12W /  320W |     512MiB /  16376MiB |      2%      Default |
+-----------------------------------------+------------------------+----------------------+
"""


def smi(name: str, driver: str, cuda: str, version: str | None = None) -> str:
    return _SMI.format(name=name, driver=driver, cuda=cuda, smi=version or driver)


VLLM_INFO = """
==============================
        System Info
==============================
OS                           : Ubuntu 22.04.5 LTS (x86_64)
GCC version                  : (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0

==============================
       PyTorch Info
==============================
PyTorch version              : 2.9.0+cu130
Is debug build               : False
CUDA used to build PyTorch   : 13.0
ROCM used to build PyTorch   : N/A

==============================
      Python Environment
==============================
Python version               : 3.12.3 (main) [GCC 13.2.0] (64-bit runtime)

==============================
       CUDA / GPU Info
==============================
Is CUDA available            : {available}
CUDA runtime version         : 13.0.88
GPU models and configuration :
GPU 0: NVIDIA H100 80GB HBM3
GPU 1: NVIDIA H100 80GB HBM3

Nvidia driver version        : {driver}
cuDNN version                : Could not collect
"""

TEXTS: tuple[Pasted, ...] = (
    Pasted(
        "milestone on Windows",
        "arch_missing_from_build",
        smi("NVIDIA GeForce RTX 5090   WDDM", "576.88", "12.9")
        + "C:\\work\\.venv\\Lib\\site-packages\\torch\\cuda\\__init__.py:235: UserWarning:\r\n"
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch "
        "installation.\r\n"
        "The current PyTorch install supports CUDA capabilities sm_50 sm_60 sm_61 sm_70 sm_75 sm_80 "
        "sm_86 sm_90.\r\n",
        ("cu128",),
        ("cu126", "cu130", "cu132"),
    ),
    Pasted(
        "forward compatibility on a data-center GPU",
        "ok",
        VLLM_INFO.format(available="True", driver="570.172.08"),
    ),
    Pasted(
        "the same, not available",
        "driver_too_old_for_runtime",
        VLLM_INFO.format(available="False", driver="570.172.08"),
        ("cu126", "cu128"),
        ("cu130", "cu132"),
    ),
    Pasted(
        "minor-version compatibility",
        "ok",
        "PyTorch version: 2.6.0+cu124\nCUDA used to build PyTorch: 12.4\nIs CUDA available: True\n"
        "GPU models and configuration: GPU 0: NVIDIA RTX A5000\nNvidia driver version: 535.183.01\n",
    ),
    Pasted(
        "Ada without sm_89 in the list",
        "ok",
        ">>> torch.cuda.get_arch_list()\n['sm_50', 'sm_60', 'sm_70', 'sm_75', 'sm_80', 'sm_86', 'sm_90']\n"
        ">>> torch.cuda.get_device_name(0)\n'NVIDIA GeForce RTX 4090'\n>>> torch.cuda.is_available()\nTrue\n"
        ">>> torch.__version__\n'2.4.1+cu121'\n",
    ),
    Pasted(
        "ultralytics banner, CPU build",
        "cpu_only_build",
        "Ultralytics 8.3.40 Python-3.11.9 torch-2.5.1+cpu CPU (AMD Ryzen 7 5800X 8-Core Processor)\n"
        "ValueError: Invalid CUDA 'device=0' requested. torch.cuda.is_available(): False\n"
        "torch.cuda.device_count(): 0\nos.environ['CUDA_VISIBLE_DEVICES']: None\n",
        (),
        (),
    ),
    Pasted(
        "ultralytics banner, fine",
        "ok",
        "Ultralytics 8.3.40 Python-3.11.9 torch-2.5.1+cu124 CUDA:0 (NVIDIA GeForce RTX 3060, 12288MiB)\n",
    ),
    Pasted(
        "ComfyUI log on Pascal",
        "gpu_too_old_dropped",
        "Total VRAM 8192 MB, total RAM 32698 MB\npytorch version: 2.9.1+cu130\nDevice: cuda:0 NVIDIA "
        "GeForce GTX 1080 : "
        "cudaMallocAsync\nRuntimeError: CUDA error: no kernel image is available for execution on the "
        "device\n",
        ("cu126",),
        ("cu128", "cu130", "cu132"),
    ),
    Pasted(
        "transformers env, fine",
        "ok",
        "- `transformers` version: 4.48.0\n- Platform: Linux-5.15.0-x86_64-with-glibc2.35\n- Python "
        "version: 3.10.12\n"
        "- PyTorch version (GPU?): 2.5.1+cu124 (True)\n- GPU type: NVIDIA A100-SXM4-40GB\n",
    ),
    Pasted(
        "accelerate env, CPU build",
        "cpu_only_build",
        "- Platform: Windows-10-10.0.22631-SP0\n- Python version: 3.11.7\n- PyTorch version (GPU?): "
        "2.6.0+cpu (False)\n",
    ),
    Pasted(
        "assertion on Windows",
        "cpu_only_build",
        '  File "C:\\Users\\me\\venv\\Lib\\site-packages\\torch\\cuda\\__init__.py", line 310, in _lazy_init\n'
        '    raise AssertionError("Torch not compiled with CUDA enabled")\nAssertionError: Torch not compiled with CUDA enabled\n',
    ),
    Pasted(
        "pip replaced the CUDA build on Windows",
        "cpu_only_build",
        "C:\\>pip install some-package\nAttempting uninstall: torch\n    Found existing installation: "
        "torch 2.8.0+cu128\n"
        'Successfully installed some-package-1.2 torch-2.9.1\nC:\\>python -c "import torch; print(torch.cuda.is_available())"\n'
        "torch.cuda.is_available() False\n",
    ),
    Pasted(
        "docker without the GPU",
        "no_driver_or_no_gpu",
        'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].\n',
    ),
    Pasted(
        "library missing in a container",
        "no_driver_or_no_gpu",
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory\n",
    ),
    Pasted(
        "nvidia-smi cannot talk",
        "no_driver_or_no_gpu",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
        "the latest NVIDIA "
        "driver is installed and running.\n",
    ),
    Pasted(
        "command not found",
        "no_driver_or_no_gpu",
        "$ nvidia-smi\nbash: nvidia-smi: command not found\n"
        "$ python -c 'import torch; print(torch.__version__, torch.cuda.is_available())'\n2.10.0+cu128 "
        "False\n",
    ),
    Pasted(
        "mask that names nothing",
        "visible_devices_masked",
        "export CUDA_VISIBLE_DEVICES=2\nGPU 0: NVIDIA L4 (UUID: GPU-1)\nGPU 1: NVIDIA L4 (UUID: GPU-2)\n"
        "RuntimeError: No CUDA GPUs are available\n",
    ),
    Pasted(
        "empty mask",
        "visible_devices_masked",
        'CUDA_VISIBLE_DEVICES="" python train.py\n'
        "torch.cuda.is_available(): False\nGPU 0: NVIDIA L4\nDriver Version: 550.90.07  CUDA Version: 12.4\n",
    ),
    Pasted(
        "a mention is no mask",
        "other",
        "UserWarning: CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up "
        "environment, e.g. "
        "changing env variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices "
        "to be zero.\n",
    ),
    Pasted(
        "driver upgraded, not restarted, with 804",
        "other",
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n"
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was "
        "attempted on non "
        "supported HW\n",
    ),
    Pasted(
        "804 on GeForce in a container",
        "forward_compat_mismatch",
        smi("NVIDIA GeForce RTX 3090", "535.183.01", "12.2")
        + "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non "
        "supported HW\n",
    ),
    Pasted(
        "803 with the compat folder named",
        "forward_compat_mismatch",
        "LD_LIBRARY_PATH has /usr/local/cuda/compat first. Error 803: system has unsupported display "
        "driver / cuda driver "
        "combination\n",
        also=("other",),
    ),
    Pasted(
        "fabric manager",
        "other",
        "Error 802: system not yet initialized\n" + smi("NVIDIA A100-SXM4-80GB", "550.90.07", "12.4"),
    ),
    Pasted(
        "R610 banner and a new build",
        "ok",
        "| NVIDIA-SMI 610.57.04             KMD Version: 610.57.04     CUDA UMD Version: 13.3     |\n"
        "|   0  NVIDIA RTX PRO 6000 Blackwell Server Edition        On  |   00000000:01:00.0 Off |\n"
        "torch 2.14.1+cu130\ntorch.cuda.is_available() True\n",
    ),
    Pasted(
        "R610 banner and an old build",
        "arch_missing_from_build",
        "| NVIDIA-SMI 610.57.04             KMD Version: 610.57.04     CUDA UMD Version: 13.3     |\n"
        "|   0  NVIDIA RTX PRO 6000 Blackwell Server Edition        On  |   00000000:01:00.0 Off |\n"
        "torch 2.5.1+cu124\n",
        ("cu128", "cu130", "cu132"),
        ("cu124", "cu126"),
    ),
    Pasted(
        "quoted and prefixed",
        "gpu_too_old_dropped",
        "> (Worker pid=7) UserWarning:\n> (Worker pid=7)     Found GPU0 Tesla P40 which is of cuda "
        "capability 6.1.\n"
        "> (Worker pid=7)     Minimum and Maximum cuda capability supported by this version of PyTorch is\n"
        "> (Worker pid=7)     (7.5) - (12.0)\n",
        ("cu126",),
        ("cu128", "cu130"),
    ),
    Pasted(
        "GB10 false alarm",
        "ok",
        "Found GPU0 NVIDIA GB10 which is of cuda capability 12.1. Minimum and Maximum cuda capability "
        "supported by this "
        "version of PyTorch is (8.0) - (12.0)\n",
    ),
    Pasted(
        "V100 with the newest wheel",
        "gpu_too_old_dropped",
        "torch: 2.13.0+cu130\nGPU: Tesla V100-SXM2-32GB\nDriver Version: 580.95.05\nno kernel image is "
        "available for "
        "execution on the device\n",
        ("cu126",),
        ("cu130", "cu132"),
    ),
    Pasted(
        "PTX of a newer toolkit",
        "driver_too_old_for_runtime",
        "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.\n",
    ),
    Pasted(
        "driver of the CUDA 11 era",
        "driver_too_old_for_runtime",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11020). Please update "
        "your GPU driver\n",
        ("cu118", "cu117"),
        ("cu126", "cu128", "cu130"),
    ),
    Pasted(
        "insufficient driver",
        "driver_too_old_for_runtime",
        "CUDA driver version is insufficient for CUDA runtime version\n" + smi("Tesla T4", "470.223.02", "11.4"),
        ("cu118", "cu117"),
        ("cu126", "cu130"),
    ),
    Pasted(
        "Triton on Pascal",
        "other",
        "torch._inductor.exc.GPUTooOldForTriton: Found Tesla P100-PCIE-16GB which is too old to be "
        "supported by the triton "
        "GPU compiler. Triton only supports devices of CUDA Capability >= 7.0, but your device is of "
        "CUDA capability 6.0\n",
    ),
    Pasted(
        "extension without code",
        "other",
        "torch 2.8.0+cu128\nGPU: NVIDIA GeForce RTX 5090\nFile "
        "site-packages/flash_attn/flash_attn_interface.py line 91\n"
        "RuntimeError: CUDA error: no kernel image is available for execution on the device\n",
    ),
    Pasted(
        "wheel that does not exist",
        "other",
        "ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cu128 (from "
        "versions: 2.13.0)\n"
        "ERROR: No matching distribution found for torch==2.13.0+cu128\n",
    ),
    Pasted(
        "WSL with a driver that does not fit",
        "other",
        "| NVIDIA-SMI 545.23.05    Driver Version: 546.12    CUDA Version: ERR! |\nWSL2\n",
    ),
    Pasted(
        "Orin and an ordinary wheel, JetPack 6",
        "arch_missing_from_build",
        "Jetson AGX Orin, JetPack 6.1, aarch64. Found GPU0 Orin which is of compute capability (CC) 8.7.\n"
        "The following list shows the CCs this version of PyTorch was built for and the hardware CCs it "
        "supports:\n"
        "- 8.0 which supports hardware CC >=8.0,<9.0 except {8.7}\n- 9.0 which supports hardware CC "
        ">=9.0,<10.0\n",
        also=("gpu_too_old_dropped",),
    ),
    Pasted(
        "Orin and an ordinary wheel, JetPack 7.2",
        "ok",
        "Jetson Orin Nano, JetPack 7.2, L4T R39.2, aarch64, torch 2.13.0+cu130, CUDA available: True\n"
        "Found GPU0 Orin which is of compute capability (CC) 8.7.\n"
        "- 8.0 which supports hardware CC >=8.0,<9.0 except {8.7}\n- 9.0 which supports hardware CC "
        ">=9.0,<10.0\n",
    ),
    Pasted(
        "PTX only",
        "ptx_jit_only",
        "GeForce RTX 5070 with CUDA capability sm_120 is not compatible with the current PyTorch "
        "installation.\nThe current "
        "PyTorch install supports CUDA capabilities sm_80 sm_86 sm_90 compute_90.\n",
        ("cu128",),
        ("cu126",),
        also=("arch_missing_from_build",),
    ),
    Pasted(
        "one JSON string",
        "cpu_only_build",
        '"PyTorch version: 2.3.0+cpu\\nIs debug build: False\\nCUDA used to build PyTorch: None\\nOS: Ubuntu\\nGPU models and '
        'configuration: GPU 0: NVIDIA GeForce RTX 4060\\nNvidia driver version: 550.54.14"',
    ),
    Pasted(
        "two GPUs of different ages",
        "gpu_too_old_dropped",
        "GPU 0: NVIDIA GeForce RTX 4070\nGPU 1: NVIDIA GeForce GTX 1060 6GB\nNvidia driver version: "
        "580.95.05\n"
        "PyTorch version: 2.12.0+cu130\nIs CUDA available: True\n",
        ("cu126",),
        ("cu130", "cu132"),
    ),
    Pasted(
        "shortened name of nvidia-smi",
        "ok",
        "|   0  NVIDIA GeForce RTX 208...  Off  | 00000000:01:00.0 Off |                  N/A |\n"
        "Driver Version: 525.105.17   CUDA Version: 12.0\ntorch==2.3.1+cu121\ntorch.cuda.is_available() "
        "True\n",
    ),
    Pasted(
        "extension build with another toolkit",
        "other",
        "RuntimeError: The detected CUDA version (11.8) mismatches the version that was used to compile "
        "PyTorch (12.4).\n",
    ),
    Pasted(
        "GPU lost",
        "other",
        "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost. Reboot the system\n",
    ),
    Pasted(
        "ROCm build",
        "other",
        "PyTorch version: 2.6.0+rocm6.2.4\nROCM used to build PyTorch: 6.2.41134\n"
        "GPU models and configuration: GPU 0: NVIDIA GeForce RTX 3080\nIs CUDA available: False\n",
    ),
)
