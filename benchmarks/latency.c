/* Makes the files below a folder as slow to reach as those of a network disk, for benchmarks.reading.

   Loaded by LD_PRELOAD. Each call that opens or reads a file below SLOW_FOLDER first waits SLOW_MICROSECONDS; at the end, the
   number of these calls is written to SLOW_COUNT. Python's own files, and TensorFlow's, stay fast. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_FILES 65536

static char slow[MOST_FILES]; /* by file descriptor */
static long calls;

static void wait_once(void) {
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    const char *time = getenv("SLOW_MICROSECONDS");
    if (time) usleep(atoi(time));
}

static int is_slow(int fd) { return fd >= 0 && fd < MOST_FILES && slow[fd]; }

static int below(const char *path) {
    const char *folder = getenv("SLOW_FOLDER");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int note(int fd, int is_below) {
    if (fd >= 0 && fd < MOST_FILES) slow[fd] = is_below;
    return fd;
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("SLOW_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", calls);
        fclose(file);
    }
}

#define OPEN(name)                                                              \
    int name(const char *path, int flags, ...) {                                \
        static int (*real)(const char *, int, ...);                             \
        if (!real) real = dlsym(RTLD_NEXT, #name);                              \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        int mode = va_arg(more, int);                                           \
        va_end(more);                                                           \
        if (below(path)) wait_once();                                           \
        return note(real(path, flags, mode), below(path));                      \
    }
#define OPEN_AT(name)                                                           \
    int name(int folder, const char *path, int flags, ...) {                    \
        static int (*real)(int, const char *, int, ...);                        \
        if (!real) real = dlsym(RTLD_NEXT, #name);                              \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        int mode = va_arg(more, int);                                           \
        va_end(more);                                                           \
        if (below(path)) wait_once();                                           \
        return note(real(folder, path, flags, mode), below(path));              \
    }
#define READ(name, parameters, arguments)                                       \
    ssize_t name parameters {                                                   \
        static ssize_t(*real) parameters;                                       \
        if (!real) real = dlsym(RTLD_NEXT, #name);                              \
        if (is_slow(fd)) wait_once();                                           \
        return real arguments;                                                  \
    }

OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)
READ(read, (int fd, void *buffer, size_t n), (fd, buffer, n))
READ(pread, (int fd, void *buffer, size_t n, off_t at), (fd, buffer, n, at))
READ(pread64, (int fd, void *buffer, size_t n, off64_t at), (fd, buffer, n, at))
READ(readv, (int fd, const struct iovec *parts, int n), (fd, parts, n))
READ(preadv, (int fd, const struct iovec *parts, int n, off_t at), (fd, parts, n, at))
READ(preadv64, (int fd, const struct iovec *parts, int n, off64_t at), (fd, parts, n, at))
READ(preadv2, (int fd, const struct iovec *parts, int n, off_t at, int flags), (fd, parts, n, at, flags))
READ(preadv64v2, (int fd, const struct iovec *parts, int n, off64_t at, int flags), (fd, parts, n, at, flags))
