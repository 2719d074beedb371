/* Disks and clocks as bad as real ones, at the edge between libc and the kernel. For LD_PRELOAD.
 *
 * EDGE_ROOT       calls on files below this directory are affected
 * EDGE_SWITCH     nothing is affected before this file exists (not set: from the start)
 * EDGE_LOCKS      an error number for fcntl and flock locks, or "hang"
 * EDGE_ALLOCATE   an error number for posix_fallocate and ftruncate
 * EDGE_WRITE      an error number for write, "hang", or "slow" (50 ms each)
 * EDGE_CLOCK      a file: seconds by which the wall clock is wrong
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int is_affected(int fd)
{
    const char *root = getenv("EDGE_ROOT"), *on = getenv("EDGE_SWITCH");
    char link[64], path[4096];
    if (root == NULL || (on != NULL && access(on, F_OK) != 0))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, root, strlen(root)) == 0;
}

/* 0: go on. Else the error number. Does not come back where the disk hangs. */
static int trouble(int fd, const char *name)
{
    const char *what = getenv(name);
    if (what == NULL || !is_affected(fd))
        return 0;
    if (strcmp(what, "hang") == 0)
        for (;;)
            pause();
    if (strcmp(what, "slow") == 0) {
        usleep(50000);
        return 0;
    }
    return atoi(what);
}

static int lock(int fd, int command, void *argument)
{
    int error = 0;
    if (command == F_SETLK || command == F_SETLKW)
        error = trouble(fd, "EDGE_LOCKS");
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_fcntl, fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return lock(fd, command, argument);
}

int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return lock(fd, command, argument);
}

int flock(int fd, int operation)
{
    int error = trouble(fd, "EDGE_LOCKS");
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_flock, fd, operation);
}

int posix_fallocate64(int fd, off_t offset, off_t length)
{
    int error = trouble(fd, "EDGE_ALLOCATE");
    if (error)
        return error;
    return syscall(SYS_fallocate, fd, 0, offset, length) ? errno : 0;
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    return posix_fallocate64(fd, offset, length);
}

int ftruncate64(int fd, off_t length)
{
    int error = trouble(fd, "EDGE_ALLOCATE");
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length)
{
    return ftruncate64(fd, length);
}

ssize_t write(int fd, const void *data, size_t size)
{
    int error = trouble(fd, "EDGE_WRITE");
    if (error) {
        errno = error;
        return -1;
    }
    return syscall(SYS_write, fd, data, size);
}

static double shift(void)
{
    const char *name = getenv("EDGE_CLOCK");
    char text[64] = "";
    if (name == NULL)
        return 0;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (read(fd, text, sizeof text - 1) < 0)
        text[0] = 0;
    close(fd);
    return atof(text);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME && result == 0)
        now->tv_sec += (time_t)shift();
    return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
    (void)zone;
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (result != NULL)
        *result = precise.tv_sec;
    return precise.tv_sec;
}
