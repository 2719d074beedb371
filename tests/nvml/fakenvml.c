/* A simulated libnvidia-ml.so.1: the part of NVML that the agent calls.
 *
 * Its state is the text file $FAKE_NVML_STATE, read again at each call, with lines "key value" for
 * all devices or "gpuN.key value" for one. "init.rc 9": nvmlInit returns 9. "gpu1.rc 15": every
 * call on device 1 returns 15 (GPU is lost). "power.rc 3": that value is not supported. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, BAD_VERSION = 25, DEVICES = 16 };

typedef unsigned int uint;
typedef unsigned long long ulong64;
typedef struct { int index; } *device;

static struct { int index; } devices[DEVICES];
static int users;

static double state(int gpu, const char *key, double fallback)
{
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char name[96], own[96];
    double value, found = fallback;
    int is_own = 0;
    if (!file)
        return fallback;
    snprintf(own, sizeof own, "gpu%d.%s", gpu, key);
    while (fscanf(file, "%95s %lf", name, &value) == 2) {
        if (!strcmp(name, own)) {
            found = value;
            is_own = 1;
        } else if (!is_own && !strcmp(name, key)) {
            found = value;
        }
    }
    fclose(file);
    return found;
}

static int check(device gpu, const char *key)
{
    char name[96];
    int code;
    if (!users)
        return UNINITIALIZED;
    code = (int)state(gpu->index, "rc", OK);
    if (code)
        return code;
    snprintf(name, sizeof name, "%s.rc", key);
    return (int)state(gpu->index, name, OK);
}

int nvmlInitWithFlags(uint flags)
{
    int code = (int)state(-1, "init.rc", OK);
    (void)flags;
    if (code == OK) {
        users++;
        for (int i = 0; i < DEVICES; i++)
            devices[i].index = i;
    }
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return users-- > 0 ? OK : UNINITIALIZED; }

const char *nvmlErrorString(int code)
{
    switch (code) {
    case 3: return "Not Supported";
    case 9: return "Driver Not Loaded";
    case 13: return "Function Not Found";
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(uint *count)
{
    *count = (uint)state(-1, "count", 2);
    return users ? OK : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(uint index, device *gpu)
{
    if (index >= (uint)state(-1, "count", 2))
        return INVALID_ARGUMENT;
    *gpu = (device)&devices[index];
    return (int)state((int)index, "handle.rc", OK);
}

#define TEXT(function, key, format)                            \
    int function(device gpu, char *text, uint size)            \
    {                                                          \
        int code = check(gpu, key);                            \
        if (code == OK)                                        \
            snprintf(text, size, format, gpu->index);          \
        return code;                                           \
    }
TEXT(nvmlDeviceGetName, "name", "Simulated GPU %d")
TEXT(nvmlDeviceGetUUID, "uuid", "GPU-0000-%d")

#define NUMBER(function, key, type, fallback)                  \
    int function(device gpu, type *value)                      \
    {                                                          \
        int code = check(gpu, key);                            \
        if (code == OK)                                        \
            *value = (type)state(gpu->index, key, fallback);   \
        return code;                                           \
    }
NUMBER(nvmlDeviceGetPowerUsage, "power", uint, 350000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit", uint, 700000)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen", uint, 4)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen_max", uint, 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width", uint, 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max", uint, 16)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, "energy", ulong64, 1000)
#ifndef WITHOUT_EVENT_REASONS
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "reasons", ulong64, 4)
#endif
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, "reasons", ulong64, 8)

int nvmlDeviceGetUtilizationRates(device gpu, uint *rates)
{
    int code = check(gpu, "util");
    rates[0] = (uint)state(gpu->index, "util", 87);
    rates[1] = (uint)state(gpu->index, "memory_util", 42);
    return code;
}

typedef struct { uint version; ulong64 total, reserved, free, used; } memory_v2;

int nvmlDeviceGetMemoryInfo_v2(device gpu, memory_v2 *memory)
{
    if (memory->version != 0x02000028)
        return BAD_VERSION;
    memory->total = (ulong64)state(gpu->index, "memory_total", 80e9);
    memory->used = (ulong64)state(gpu->index, "memory_used", 20e9);
    memory->reserved = 500000000;
    memory->free = memory->total - memory->used - memory->reserved;
    return check(gpu, "memory_v2");
}

/* Version 1 counts what the driver reserves as used. */
int nvmlDeviceGetMemoryInfo(device gpu, ulong64 *memory)
{
    memory[0] = (ulong64)state(gpu->index, "memory_total", 80e9);
    memory[2] = (ulong64)state(gpu->index, "memory_used", 20e9) + 500000000;
    memory[1] = memory[0] - memory[2];
    return check(gpu, "memory");
}

int nvmlDeviceGetTemperature(device gpu, int sensor, uint *celsius)
{
    (void)sensor;
    *celsius = (uint)state(gpu->index, "temperature", 61);
    return check(gpu, "temperature");
}

int nvmlDeviceGetClockInfo(device gpu, int kind, uint *mhz)
{
    *mhz = kind == 2 ? 3200 : (uint)state(gpu->index, "clock", 1700);
    return check(gpu, "clock");
}

int nvmlDeviceGetMaxClockInfo(device gpu, int kind, uint *mhz)
{
    (void)kind;
    *mhz = 1980;
    return check(gpu, "max_clock");
}

int nvmlDeviceGetTotalEccErrors(device gpu, int kind, int counter, ulong64 *errors)
{
    (void)counter;
    *errors = (ulong64)state(gpu->index, kind ? "ecc_double" : "ecc_single", 0);
    return check(gpu, "ecc");
}

int nvmlDeviceGetPcieThroughput(device gpu, int direction, uint *kilobytes_a_second)
{
    *kilobytes_a_second = direction ? 2000 : 1000;
    return check(gpu, "pcie");
}

/* "gpu0.xid 79" with "gpu0.xid_count 2": two such errors wait, until they are taken. */
typedef struct { device gpu; ulong64 type, data; uint instance, compute; } event;
static int watched[DEVICES], taken[DEVICES], sets;

int nvmlEventSetCreate(void **set) { sets++; *set = &sets; return OK; }
int nvmlEventSetFree(void *set) { (void)set; sets--; return OK; }
int nvmlDeviceGetIndex(device gpu, uint *index) { *index = (uint)gpu->index; return OK; }

int nvmlDeviceRegisterEvents(device gpu, ulong64 types, void *set)
{
    int code = check(gpu, "events");
    watched[gpu->index] = set && (types & 8) && code == OK;
    return code;
}

int nvmlEventSetWait_v2(void *set, event *found, uint timeout_ms)
{
    (void)set;
    (void)timeout_ms;
    for (int i = 0; i < DEVICES; i++) {
        if (!watched[i] || taken[i] >= (int)state(i, "xid_count", 0))
            continue;
        taken[i]++;
        *found = (event){(device)&devices[i], 8, (ulong64)state(i, "xid", 0), ~0u, ~0u};
        return OK;
    }
    return 10; /* timeout */
}

typedef struct { uint pid; ulong64 memory; uint instance, compute; } process;

#ifdef WITHOUT_PROCESSES_V3
int nvmlDeviceGetComputeRunningProcesses_v2(device gpu, uint *count, process *found)
#else
int nvmlDeviceGetComputeRunningProcesses_v3(device gpu, uint *count, process *found)
#endif
{
    uint room = *count, pid = (uint)state(gpu->index, "pid", 0);
    *count = pid ? 1 : 0;
    if (pid && (!found || !room))
        return 7; /* insufficient size */
    if (pid)
        found[0] = (process){pid, 9000000000ULL, ~0u, ~0u};
    return check(gpu, "processes");
}
