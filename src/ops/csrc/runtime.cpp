#include "runtime.h"

#include <dlfcn.h>
#include <immintrin.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <thread>

namespace da {
Dnnl dnnl_;

const char *load(const char *path) {
    static std::string reason;
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return (reason = std::string(path) + " is not loaded").c_str();
#define X(name, result, arguments)                                                       \
    *reinterpret_cast<void **>(&dnnl_.name) = dlsym(library, "dnnl_" #name);             \
    if (!dnnl_.name) return "oneDNN lacks the function dnnl_" #name;
    DA_DNNL_FUNCTIONS(X)
#undef X
    const Version *v = dnnl_.version();
    if (v->cpu_runtime != kRuntimeThreadpool) return "oneDNN was built without the thread-pool runtime";
    return "";
}

void check(int status, const char *what) {
    if (status == 0) return;
    throw std::runtime_error("oneDNN status " + std::to_string(status) + " from " + what);
}

namespace {
constexpr int kSpins = 2000;  // about 0.1 ms
thread_local bool inside = false;  // the calling thread runs a part of a parallel section

// A few threads that wait, first spinning for a moment (a step is many short sections in a row), then asleep.
class Pool : public dnnl::threadpool_interop::threadpool_iface {
  public:
    explicit Pool(int threads) : threads_(threads) {
        for (int i = 1; i < threads; ++i) std::thread([this] { work(); }).detach();
    }
    int get_num_threads() const override { return threads_; }
    bool get_in_parallel() const override { return inside; }
    uint64_t get_flags() const override { return 0; }
    void wait() override {}
    void parallel_for(int n, const std::function<void(int, int)> &fn) override {
        run(n, [&](int i) { fn(i, n); });
    }

    void run(int n, const std::function<void(int)> &fn) {
        // Another of MindSpore's threads may have the pool: then this one does its own work alone.
        std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
        if (n <= 1 || threads_ <= 1 || inside || !turn.try_lock()) {
            const bool outer = inside;
            inside = true;
            for (int i = 0; i < n; ++i) fn(i);
            inside = outer;
            return;
        }
        auto job = std::make_shared<Job>(n, &fn);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = job;
            generation_.fetch_add(1, std::memory_order_release);
        }
        if (sleeping_.load() > 0) wake_.notify_all();
        take(*job);
        // On a busy machine the thread that has the last part may have lost its core: then give it this one.
        for (int spins = 0; job->left.load(std::memory_order_acquire) > 0; ++spins) {
            spins < kSpins ? _mm_pause() : std::this_thread::yield();
        }
        if (job->error) std::rethrow_exception(job->error);
    }

  private:
    struct Job {
        Job(int n, const std::function<void(int)> *fn) : n(n), fn(fn), left(n) {}
        const int n;
        const std::function<void(int)> *fn;  // alive until left is 0, and not used after next reached n
        std::atomic<int> next{0}, left;
        std::mutex mutex;
        std::exception_ptr error;
    };

    static void take(Job &job) {
        inside = true;
        for (int i; (i = job.next.fetch_add(1)) < job.n;) {
            try {
                (*job.fn)(i);
            } catch (...) {
                std::lock_guard<std::mutex> lock(job.mutex);
                job.error = std::current_exception();
            }
            job.left.fetch_sub(1, std::memory_order_release);
        }
        inside = false;
    }

    void work() {
        using clock = std::chrono::steady_clock;
        uint64_t seen = 0;
        for (;;) {
            const auto until = clock::now() + std::chrono::microseconds(200);
            while (generation_.load(std::memory_order_acquire) == seen && clock::now() < until) {
                for (int i = 0; i < 32; ++i) _mm_pause();
            }
            std::shared_ptr<Job> job;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                sleeping_.fetch_add(1);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
                sleeping_.fetch_sub(1);
                seen = generation_.load();
                job = job_;
            }
            take(*job);
        }
    }

    const int threads_;
    std::mutex turn_, mutex_;
    std::condition_variable wake_;
    std::shared_ptr<Job> job_;
    std::atomic<uint64_t> generation_{0};
    std::atomic<int> sleeping_{0};
};

std::atomic<Pool *> pool_{nullptr};
std::atomic<int> wanted_{1};
Handle engine_ = nullptr, attributes_ = nullptr;

// Threads do not survive a fork: the child gets a pool of its own on first use, the parent's is left behind.
Pool &pool() {
    Pool *found = pool_.load(std::memory_order_acquire);
    if (found) return *found;
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    if (!pool_.load()) pool_.store(new Pool(wanted_));
    return *pool_.load();
}
}  // namespace

void start(int threads) {
    wanted_ = threads < 1 ? 1 : threads;
    if (!engine_) {
        DA_CHECK(engine_create(&engine_, kCpu, 0));
        DA_CHECK(primitive_attr_create(&attributes_));
        DA_CHECK(primitive_attr_set_scratchpad_mode(attributes_, kScratchpadUser));
        pthread_atfork(nullptr, nullptr, [] { pool_.store(nullptr); });
    }
}

Handle engine() { return engine_; }
Handle attributes() { return attributes_; }
int threads() { return wanted_; }
int block() {
    static const int found = (dnnl_.get_effective_cpu_isa() & kIsaAvx512) == kIsaAvx512 ? 16 : 8;
    return found;
}

Handle stream() {
    thread_local Handle mine = nullptr;
    thread_local Pool *of = nullptr;
    if (of != &pool()) {
        of = &pool();
        DA_CHECK(threadpool_interop_stream_create(&mine, engine_, of));
    }
    return mine;
}

void parallel(int n, const std::function<void(int)> &fn) { pool().run(n, fn); }

namespace {
std::mutex free_mutex;
auto &free_buffers = *new std::multimap<size_t, void *>;  // threads may outlive static objects
size_t free_bytes = 0;
constexpr size_t kKeep = size_t(512) << 20;  // kept for reuse at most
}  // namespace

Buffer::Buffer(size_t size) : bytes_((size + 4095) / 4096 * 4096) {
    if (bytes_ == 0) bytes_ = 4096;
    {
        std::lock_guard<std::mutex> lock(free_mutex);
        auto found = free_buffers.lower_bound(bytes_);
        if (found != free_buffers.end() && found->first <= 2 * bytes_) {
            found = std::prev(free_buffers.upper_bound(found->first));  // the last returned: it may be cached
            data_ = found->second;
            bytes_ = found->first;
            free_bytes -= bytes_;
            free_buffers.erase(found);
            return;
        }
    }
    if (posix_memalign(&data_, 4096, bytes_)) throw std::bad_alloc();
}

Buffer::~Buffer() {
    if (!data_) return;
    std::lock_guard<std::mutex> lock(free_mutex);
    free_buffers.emplace(bytes_, data_);
    free_bytes += bytes_;
    while (free_bytes > kKeep) {
        auto largest = std::prev(free_buffers.end());
        free_bytes -= largest->first;
        free(largest->second);
        free_buffers.erase(largest);
    }
}

Primitive::Primitive(Handle desc) : desc_(desc) {
    const int status = dnnl_.primitive_create(&primitive_, desc_);
    if (status != 0) {
        dnnl_.primitive_desc_destroy(desc_);
        check(status, "primitive_create");
    }
}

Primitive::~Primitive() {
    dnnl_.primitive_destroy(primitive_);
    dnnl_.primitive_desc_destroy(desc_);
}

const char *Primitive::implementation() const {
    const char *name = "";
    dnnl_.primitive_desc_query(desc_, kQueryImplementation, 0, &name);
    return name;
}

void Primitive::run(std::initializer_list<Operand> operands) const {
    struct Memories {
        std::vector<Arg> args;
        ~Memories() {
            for (auto &a : args) dnnl_.memory_destroy(a.memory);
        }
        void add(int index, ConstHandle md, void *data) {
            Handle memory = nullptr;
            DA_CHECK(memory_create(&memory, md, engine(), data));
            args.push_back({index, memory});
        }
    } memories;
    for (const auto &o : operands) memories.add(o.index, o.md, o.data);
    std::unique_ptr<Buffer> scratch;
    ConstHandle scratch_md = md(kQueryScratchpad);
    const size_t size = scratch_md ? bytes(scratch_md) : 0;
    if (size) {
        scratch = std::make_unique<Buffer>(size);
        memories.add(kArgScratchpad, scratch_md, scratch->get());
    }
    DA_CHECK(primitive_execute(primitive_, stream(), int(memories.args.size()), memories.args.data()));
}

Layout::Layout(const std::vector<dim_t> &dims, int tag) {
    DA_CHECK(memory_desc_create_with_tag(&md_, int(dims.size()), dims.data(), kFloat32, tag));
}
Layout::Layout(ConstHandle other) { DA_CHECK(memory_desc_clone(&md_, other)); }

Reorder::Reorder(ConstHandle from, ConstHandle to) : from_(from), to_(to) {
    if (same(from, to)) return;
    Handle desc = nullptr;
    DA_CHECK(reorder_primitive_desc_create(&desc, from, engine(), to, engine(), attributes()));
    primitive_ = std::make_unique<Primitive>(desc);
}

void Reorder::run(const void *from, void *to) const {
    if (!primitive_) {
        memcpy(to, from, bytes(from_));
        return;
    }
    primitive_->run({{kArgSource, from_, const_cast<void *>(from)}, {kArgDestination, to_, to}});
}

void *Reorder::convert(const void *data, std::unique_ptr<Buffer> &buffer) const {
    if (!primitive_) return const_cast<void *>(data);
    buffer = std::make_unique<Buffer>(bytes(to_));
    run(data, buffer->get());
    return buffer->get();
}

int guarded(const char *name, const std::function<void()> &body) {
    try {
        body();
        return 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s: %s\n", name, e.what());
        return 1;
    }
}
}  // namespace da
