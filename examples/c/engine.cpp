// Submit requests from many threads to one queue, with priorities, deadlines and cancellation.
//
//     engine MODEL PREFIX
//
// writes PREFIX0.png to PREFIX2.png. docs/c.md says how to compile it.
#include <braid.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// Frees a handle where its owner ends.
template <typename T, void (*Free)(T *)>
struct Freed {
    void operator()(T *handle) const { Free(handle); }
};
using Pipeline = std::unique_ptr<braid_pipeline, Freed<braid_pipeline, braid_pipeline_free>>;
using Engine = std::unique_ptr<braid_engine, Freed<braid_engine, braid_engine_free>>;
using Ticket = std::unique_ptr<braid_ticket, Freed<braid_ticket, braid_ticket_free>>;
using Output = std::unique_ptr<braid_output, Freed<braid_output, braid_output_free>>;

static std::string last_error() {
    std::vector<char> text(braid_last_error(nullptr, 0));
    braid_last_error(text.data(), text.size());
    return text.data();
}

static void check(braid_status status) {
    if (status != BRAID_OK) {
        throw std::runtime_error(std::string(braid_status_name(status)) + ": " + last_error());
    }
}

static Pipeline load(const char *model) {
    braid_pipeline_options options;
    check(braid_pipeline_options_init(&options, sizeof options));
    options.model = model;
    braid_pipeline *pipeline = nullptr;
    check(braid_pipeline_load(&options, &pipeline));
    return Pipeline(pipeline);
}

static Ticket submit(const Engine &engine, std::uint64_t seed, std::size_t steps, const braid_submit_options *options) {
    braid_request request;
    check(braid_request_init(&request, sizeof request));
    request.prompt = "a lighthouse";
    request.seed = seed;
    request.steps = steps;
    braid_ticket *ticket = nullptr;
    check(braid_engine_submit(engine.get(), &request, options, &ticket));
    return Ticket(ticket);
}

static braid_status wait(const Ticket &ticket, Output &output) {
    braid_output *taken = nullptr;
    const braid_status status = braid_ticket_wait(ticket.get(), -1, &taken);
    output.reset(taken);
    return status;
}

// Each client waits for its own; requests of one size are drawn together.
static void client(const Engine &engine, std::uint64_t seed, const std::string &path) {
    try {
        Output output;
        check(wait(submit(engine, seed, 4, nullptr), output));
        check(braid_image_save(braid_output_image(output.get(), 0), path.c_str()));
    } catch (const std::exception &error) {
        std::fprintf(stderr, "seed %u: %s\n", static_cast<unsigned>(seed), error.what());
    }
}

struct Seen {
    unsigned reports;
    unsigned images;
};

// Callbacks must not throw.
static std::int32_t count(const braid_progress *, void *user_data) {
    ++static_cast<Seen *>(user_data)->reports;
    return 0;
}

// Each image is there before the whole request is done.
static std::int32_t count_image(const braid_finished_image *, void *user_data) {
    ++static_cast<Seen *>(user_data)->images;
    return 0;
}

static void run(const char *model, const std::string &prefix) {
    const Pipeline pipeline = load(model);
    braid_engine *made = nullptr;
    check(braid_engine_new(pipeline.get(), nullptr, &made));
    const Engine engine(made);

    std::vector<std::thread> clients;
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
        clients.emplace_back(client, std::cref(engine), seed, prefix + std::to_string(seed) + ".png");
    }
    for (std::thread &thread : clients) {
        thread.join();
    }

    // Begins before others that wait; useless after a minute. The counts last until the result is taken.
    Seen seen = {0, 0};
    braid_callbacks callbacks;
    check(braid_callbacks_init(&callbacks, sizeof callbacks));
    callbacks.on_progress = count;
    callbacks.on_image = count_image;
    callbacks.user_data = &seen;
    braid_submit_options urgent;
    check(braid_submit_options_init(&urgent, sizeof urgent));
    urgent.priority = 1;
    urgent.deadline_ms = 60000;
    urgent.callbacks = &callbacks;
    Output output;
    check(wait(submit(engine, 3, 4, &urgent), output));
    std::printf("seed 3: %u reports, %u image\n", seen.reports, seen.images);

    // One thread waits, another cancels.
    const Ticket ticket = submit(engine, 4, 1000, nullptr);
    std::thread waiting([&ticket] {
        Output none;
        std::printf("%s\n", braid_status_name(wait(ticket, none)));
    });
    check(braid_ticket_cancel(ticket.get()));
    waiting.join();
    check(braid_engine_drain(engine.get()));
}

int main(int argc, char **argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s MODEL PREFIX\n", argv[0]);
        return 2;
    }
    try {
        run(argv[1], argv[2]);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
