"""Shared libraries that answer as an NVIDIA driver does, compiled for a test: for machines without a GPU.

The struct is written out here in C as NVIDIA documents it, so the compiler decides its layout, not streamfeat.
"""

import subprocess
from pathlib import Path

CUDA = r"""
#include <stdlib.h>
#include <string.h>
static int pushed = 0, retained = 0;
int cuInit(unsigned flags) { return getenv("FAKE_CUINIT") ? atoi(getenv("FAKE_CUINIT")) : 0; }
int cuDriverGetVersion(int *version) { *version = atoi(getenv("FAKE_CUDA") ? getenv("FAKE_CUDA") : "12080"); return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "NVIDIA Fake 9000", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { retained++; *context = &retained; return device != 40; }
int cuDevicePrimaryCtxRelease_v2(int device) { return --retained; }
int cuCtxPushCurrent_v2(void *context) { pushed++; return context != &retained; }
int cuCtxPopCurrent_v2(void **context) { *context = &retained; return --pushed; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (!pushed) return 201;
    *free = 60ul << 30; *total = 80ul << 30; return 0;
}
int cuGetErrorString(int error, const char **text) {
    *text = error == 100 ? "no CUDA-capable device is detected" : error == 101 ? "invalid device ordinal" : 0;
    return *text == 0;
}
int fake_balance(void) { return pushed + retained; }
"""

CUVID = r"""
#include <stdlib.h>
typedef struct {
    int eCodecType; int eChromaFormat; unsigned nBitDepthMinus8; unsigned reserved1[3];
    unsigned char bIsSupported, nNumNVDECs; unsigned short nOutputFormatMask;
    unsigned nMaxWidth, nMaxHeight, nMaxMBCount; unsigned short nMinWidth, nMinHeight;
    unsigned char bIsHistogramSupported, nCounterBitDepth; unsigned short nMaxHistogramBins; unsigned reserved3[10];
} CUVIDDECODECAPS;
int cuvidGetDecoderCaps(CUVIDDECODECAPS *caps) {
    if (caps->eChromaFormat != 1 || caps->nBitDepthMinus8 != 0) return 1;
    for (int i = 0; i < 3; i++) if (caps->reserved1[i]) return 1;
    for (int i = 0; i < 10; i++) if (caps->reserved3[i]) return 1;
    if (caps->eCodecType == 11) return 801;
    caps->bIsSupported = caps->eCodecType == 4 || caps->eCodecType == 8 || caps->eCodecType == 5;
    caps->nNumNVDECs = caps->eCodecType == 5 ? 1 : atoi(getenv("FAKE_ENGINES") ? getenv("FAKE_ENGINES") : "7");
    caps->nMaxWidth = 8192; caps->nMaxHeight = 4352; caps->nMaxMBCount = 139264;
    caps->nMinWidth = 144; caps->nMinHeight = 145;
    return 0;
}
"""

NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strncpy(version, "570.86.15", length); return 0; }
"""


def build(folder: Path, **sources: str) -> Path:
    """Compile each ``library=source`` to ``folder/<library>.so.1``, for LD_LIBRARY_PATH."""
    folder.mkdir(exist_ok=True)
    for library, source in sources.items():
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-w", "-xc", "-", "-o", str(folder / f"{library}.so.1")],
            input=source, text=True, check=True,
        )
    return folder
