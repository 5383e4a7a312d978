// SPDX-License-Identifier: Apache-2.0
// Runs every kernel on every ISA of this CPU against naive.h: values, memory beside the outputs, and identical bits for
// every number of threads. Plain C++, so that it runs under sanitizers and emulators. Exits with 1 on a failure.
#include "core/dispatch.h"
#include "core/parallel.h"
#include "attention.h"
#include "bottleneck.h"
#include "cbam.h"
#include "coordinate.h"
#include "dense.h"
#include "depthwise_norm.h"
#include "engine_low.h"
#include "engine_plan.h"
#include "engine_planes.h"
#include "engine_random.h"
#include "gate.h"
#include "linked.h"
#include "loss.h"
#include "pictures.h"
#include "pool.h"
#include "step.h"
#include "stream.h"
#include "tiles.h"

namespace {

template <class T>
void activation(const std::string& name, idx count) {
  Random random(static_cast<uint32_t>(count));
  for (int act = 0; act <= 6; ++act) {
    const Values x = random.values(count, 4), dy = random.values(count);
    Values y = x, dx = x;
    for (size_t i = 0; i < x.size(); ++i) y[i] = naive::activate(act, x[i]), dx[i] = dy[i] * naive::slope(act, x[i]);
    const In<T> in_x(x), in_dy(dy);
    expect<T>(name + " act " + std::to_string(act) + " count " + std::to_string(count), {{y}, {dx}}, 1,
              [&](int threads) {
                Out<T> out_y(count), out_dx(count);
                ActivationParams p{in_x.ptr(), nullptr, out_y.ptr(), count, static_cast<Act>(act), threads};
                call<T>(activation_fwd_f32, activation_fwd_f64, p);
                p.dy = in_dy.ptr(), p.out = out_dx.ptr();
                call<T>(activation_bwd_f32, activation_bwd_f64, p);
                return Results<T>{{"y", out_y.take(name)}, {"dx", out_dx.take(name)}};
              });
  }
}

template <class T>
void depthwise(const std::string& isa, const DepthwiseShape& s) {
  Random random(static_cast<uint32_t>(s.c + s.kh));
  const idx size_x = s.n * s.h * s.w * s.c, size_w = s.c * s.kh * s.kw, size_y = pixels(s) * s.c;
  const Values x = random.values(size_x), w = random.values(size_w), bias = random.values(s.c),
               dy = random.values(size_y);
  const naive::Grads grads = naive::depthwise_grads(s, dy, x, w);
  const In<T> in_x(x), in_w(w), in_bias(bias), in_dy(dy);
  const std::string name = isa + " depthwise" + text(s);
  expect<T>(
      name, {{naive::depthwise(s, x, w, bias)}, {grads.dx}, {grads.dw, grads.dw_terms}, {grads.db, grads.db_terms}},
      pixels(s) + s.kh * s.kw, [&](int threads) {
        Out<T> y(size_y), dx(size_x), dw(size_w), db(s.c);
        DepthwiseParams p{};
        p.shape = s, p.x = in_x.ptr(), p.weight = in_w.ptr(), p.bias = in_bias.ptr(), p.y = y.ptr(),
        p.threads = threads;
        call<T>(depthwise_conv2d_fwd_f32, depthwise_conv2d_fwd_f64, p);
        p.dy = in_dy.ptr(), p.dx = dx.ptr(), p.d_weight = dw.ptr(), p.d_bias = db.ptr();
        call<T>(depthwise_conv2d_bwd_f32, depthwise_conv2d_bwd_f64, p);
        return Results<T>{{"y", y.take(name)}, {"dx", dx.take(name)}, {"dw", dw.take(name)}, {"db", db.take(name)}};
      });
}

template <class T>
void pointwise(const std::string& isa, idx rows, idx in, idx out) {
  Random random(static_cast<uint32_t>(rows + in + out));
  const Values x = random.values(rows * in), w = random.values(out * in), bias = random.values(out),
               dy = random.values(rows * out);
  const naive::Grads grads = naive::pointwise_grads(rows, in, out, dy, x, w);
  const In<T> in_x(x), in_w(w), in_bias(bias), in_dy(dy);
  const std::string name =
      isa + " pointwise " + std::to_string(rows) + "x" + std::to_string(in) + " -> " + std::to_string(out);
  const std::vector<Want> want{{naive::pointwise(rows, in, out, x, w, bias)},
                               {grads.dx},
                               {grads.dw, grads.dw_terms},
                               {grads.db, grads.db_terms}};
  expect<T>(name, want, rows + in + out, [&](int threads) {
    Out<T> y(rows * out), dx(rows * in), dw(out * in), db(out);
    PointwiseParams p{};
    p.rows = rows, p.in_channels = in, p.out_channels = out, p.threads = threads;
    p.x = in_x.ptr(), p.weight = in_w.ptr(), p.bias = in_bias.ptr(), p.y = y.ptr();
    call<T>(pointwise_conv2d_fwd_f32, pointwise_conv2d_fwd_f64, p);
    p.dy = in_dy.ptr(), p.dx = dx.ptr(), p.d_weight = dw.ptr(), p.d_bias = db.ptr();
    call<T>(pointwise_conv2d_bwd_f32, pointwise_conv2d_bwd_f64, p);
    return Results<T>{{"y", y.take(name)}, {"dx", dx.take(name)}, {"dw", dw.take(name)}, {"db", db.take(name)}};
  });
}

// `direct`: nothing but the product between the convolutions, whose first output training then need not keep.
template <class T>
class Separable {
 public:
  Separable(const std::string& isa, const DepthwiseShape& s, idx out, int act1, int act2, bool norms, bool batch,
            bool direct = false)
      : s_(s), out_(out), act1_(direct ? 0 : act1), act2_(act2), batch_(batch), direct_(direct),
        random_(static_cast<uint32_t>(s.c + out + act1)), x_(random_.values(s.n * s.h * s.w * s.c)),
        dw_(random_.values(s.c * s.kh * s.kw)), dw_bias_(random_.values(direct ? 0 : s.c)),
        pw_(random_.values(out * s.c)), pw_bias_(random_.values(out)), dout_(random_.values(pixels(s) * out)) {
    if (norms && !direct) n1_ = random_.norm(s.c);
    if (norms) n2_ = random_.norm(out);
    name_ = isa + " separable" + text(s) + " out " + std::to_string(out) + " acts " + std::to_string(act1_) +
            std::to_string(act2) + (norms ? batch ? " batch norm" : " frozen norm" : " no norm") +
            (direct ? " direct" : "");
  }

  void run() const {
    const Values y1 = naive::depthwise(s_, x_, dw_, dw_bias_), stats1 = naive::stats(n1_, y1, s_.c, batch_);
    const Values a1 = naive::norm_act(n1_, stats1, act1_, y1, s_.c);
    const Values y2 = naive::pointwise(pixels(s_), s_.c, out_, a1, pw_, pw_bias_),
                 stats2 = naive::stats(n2_, y2, out_, batch_);
    const naive::Grads at2 = naive::norm_act_grads(n2_, stats2, act2_, y2, dout_, out_, batch_);
    const naive::Grads pw = naive::pointwise_grads(pixels(s_), s_.c, out_, at2.dx, a1, pw_);
    const naive::Grads at1 = naive::norm_act_grads(n1_, stats1, act1_, y1, pw.dx, s_.c, batch_);
    const naive::Grads dw = naive::depthwise_grads(s_, at1.dx, x_, dw_);
    std::vector<Want> want{{naive::norm_act(n2_, stats2, act2_, y2, out_)},
                           {y1},
                           {y2},
                           {stats1},
                           {stats2},
                           {dw.dx},
                           {dw.dw, dw.dw_terms},
                           {dw.db, dw.db_terms},
                           {pw.dw, pw.dw_terms},
                           {pw.db, pw.db_terms},
                           {at1.dw, at1.dw_terms},
                           {at1.db, at1.db_terms},
                           {at2.dw, at2.dw_terms},
                           {at2.db, at2.db_terms}};
    if (!follows()) want[2].values.clear();
    if (direct_) want[1].values.clear(), want[7].values.clear();
    const idx length = pixels(s_) * 4 + s_.c + out_;
    expect<T>(name_, want, length, [&](int threads) { return train(threads); });
    if (!batch_) expect<T>(name_ + " inference", {want[0]}, length, [&](int threads) { return inference(threads); });
  }

 private:
  // Whether anything follows the pointwise convolution; if not, y2 is the output and not kept.
  bool follows() const { return !n2_.weight.empty() || act2_ != 0; }

  struct Inputs {
    In<T> x, dw, dw_bias, pw, pw_bias, dout;
    NormIn<T> n1, n2;
  };

  SeparableParams params(const Inputs& in, int threads) const {
    SeparableParams p{};
    p.shape = s_, p.out_channels = out_, p.batch_stats = batch_, p.threads = threads;
    p.x = in.x.ptr(), p.dw_weight = in.dw.ptr(), p.dw_bias = in.dw_bias.ptr(), p.pw_weight = in.pw.ptr(),
    p.pw_bias = in.pw_bias.ptr();
    p.norm1 = in.n1.params(n1_.eps), p.norm2 = in.n2.params(n2_.eps);
    p.act1 = static_cast<Act>(act1_), p.act2 = static_cast<Act>(act2_), p.dout = in.dout.ptr();
    return p;
  }
  Inputs inputs() const {
    return {In<T>(x_),       In<T>(dw_),   In<T>(dw_bias_), In<T>(pw_),
            In<T>(pw_bias_), In<T>(dout_), NormIn<T>(n1_),  NormIn<T>(n2_)};
  }

  Results<T> inference(int threads) const {
    const Inputs in = inputs();
    Out<T> out(pixels(s_) * out_);
    SeparableParams p = params(in, threads);
    p.out = out.ptr();
    call<T>(separable_conv2d_fwd_f32, separable_conv2d_fwd_f64, p);
    return {{"out", out.take(name_)}};
  }

  Results<T> train(int threads) const {
    const Inputs in = inputs();
    const idx norm1 = n1_.weight.empty() ? 0 : s_.c, norm2 = n2_.weight.empty() ? 0 : out_;
    Out<T> out(pixels(s_) * out_), y1(direct_ ? 0 : pixels(s_) * s_.c), y2(follows() ? pixels(s_) * out_ : 0),
        stats1(3 * norm1), stats2(3 * norm2);
    Out<T> dx(s_.n * s_.h * s_.w * s_.c), d_dw(s_.c * s_.kh * s_.kw), d_dwb(direct_ ? 0 : s_.c), d_pw(out_ * s_.c),
        d_pwb(out_);
    Out<T> d_w1(norm1), d_b1(norm1), d_w2(norm2), d_b2(norm2);
    SeparableParams p = params(in, threads);
    p.out = out.ptr(), p.y1 = direct_ ? nullptr : y1.ptr(), p.y2 = follows() ? y2.ptr() : nullptr,
    p.norm1.stats = stats1.ptr(), p.norm2.stats = stats2.ptr();
    call<T>(separable_conv2d_train_f32, separable_conv2d_train_f64, p);
    p.dx = dx.ptr(), p.d_dw_weight = d_dw.ptr(), p.d_dw_bias = direct_ ? nullptr : d_dwb.ptr(),
    p.d_pw_weight = d_pw.ptr(), p.d_pw_bias = d_pwb.ptr();
    if (norm1) p.norm1.d_weight = d_w1.ptr(), p.norm1.d_bias = d_b1.ptr();
    if (norm2) p.norm2.d_weight = d_w2.ptr(), p.norm2.d_bias = d_b2.ptr();
    call<T>(separable_conv2d_bwd_f32, separable_conv2d_bwd_f64, p);
    return {{"out", out.take(name_)},         {"y1", y1.take(name_)},           {"y2", y2.take(name_)},
            {"stats1", stats1.take(name_)},   {"stats2", stats2.take(name_)},   {"dx", dx.take(name_)},
            {"d_dw", d_dw.take(name_)},       {"d_dw_bias", d_dwb.take(name_)}, {"d_pw", d_pw.take(name_)},
            {"d_pw_bias", d_pwb.take(name_)}, {"d_weight1", d_w1.take(name_)},  {"d_bias1", d_b1.take(name_)},
            {"d_weight2", d_w2.take(name_)},  {"d_bias2", d_b2.take(name_)}};
  }

  DepthwiseShape s_;
  idx out_;
  int act1_, act2_;
  bool batch_, direct_;
  Random random_;
  Values x_, dw_, dw_bias_, pw_, pw_bias_, dout_;
  naive::Norm n1_, n2_;
  std::string name_;
};

// Kernels of every unrolled form and of the general one, odd sizes and pads, channels around 4, 8 and 16 lanes.
const DepthwiseShape kShapes[] = {
    shape(2, 9, 7, 17, 3, 3, 1, 1, 1, 1, 1, 1),  shape(1, 8, 11, 3, 3, 3, 2, 2, 0, 1, 2, 0),
    shape(2, 6, 19, 33, 5, 5, 1, 1, 2, 2, 2, 2), shape(1, 13, 9, 16, 5, 5, 2, 2, 3, 1, 0, 2),
    shape(3, 8, 12, 5, 4, 4, 4, 4, 1, 1, 1, 1),  shape(1, 4, 6, 31, 2, 2, 2, 2, 0, 0, 0, 0),
    shape(1, 9, 8, 7, 7, 7, 1, 1, 3, 3, 3, 3),   shape(2, 5, 6, 1, 3, 5, 2, 1, 1, 4, 0, 2),
    shape(1, 1, 1, 8, 1, 1, 1, 1, 0, 0, 0, 0),   shape(0, 5, 5, 4, 3, 3, 1, 1, 1, 1, 1, 1),
    shape(1, 2, 2, 9, 3, 3, 1, 1, 5, 5, 4, 6),   shape(5, 24, 24, 16, 3, 3, 1, 1, 1, 1, 1, 1),
};

// With fewer images than eight backward keeps the depthwise output after all.
const DepthwiseShape kDirectShapes[] = {
    shape(9, 7, 5, 17, 3, 3, 1, 1, 1, 1, 1, 1),   shape(8, 8, 9, 3, 3, 3, 2, 2, 0, 1, 2, 0),
    shape(11, 6, 7, 8, 5, 5, 1, 1, 2, 2, 2, 2),   shape(8, 5, 6, 33, 3, 5, 2, 1, 1, 4, 0, 2),
    shape(8, 72, 34, 16, 3, 3, 1, 1, 1, 1, 1, 1), shape(2, 6, 5, 16, 3, 3, 1, 1, 1, 1, 1, 1),
    shape(8, 6, 6, 4, 2, 2, 2, 2, 0, 0, 0, 0),    shape(0, 5, 5, 4, 3, 3, 1, 1, 1, 1, 1, 1),
};

template <class T>
void all(const std::string& isa) {
  for (idx count : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 1000, 40000}) activation<T>(isa + " activation", count);
  for (const DepthwiseShape& s : kShapes) depthwise<T>(isa, s);
  const idx sizes[][3] = {{1, 1, 1},    {0, 3, 5},   {13, 7, 3},   {14, 16, 32},
                          {15, 17, 33}, {43, 5, 49}, {85, 33, 16}, {1300, 24, 40}};
  for (const auto& v : sizes) pointwise<T>(isa, v[0], v[1], v[2]);
  int act = 0;
  for (const DepthwiseShape& s : kShapes) {
    const idx out = 5 + 12 * (act % 4);
    Separable<T>(isa, s, out, act % 7, (act + 3) % 7, true, false).run();
    Separable<T>(isa, s, out, (act + 2) % 7, act % 7, false, false).run();
    if (pixels(s) > 1) Separable<T>(isa, s, out, (act + 5) % 7, (act + 1) % 7, true, true).run();
    ++act;
  }
  for (const DepthwiseShape& s : kDirectShapes) {
    const idx out = 4 + 13 * (act++ % 4);
    Separable<T>(isa, s, out, 0, act % 7, true, false, true).run();
    Separable<T>(isa, s, out, 0, (act + 3) % 2, false, false, true).run();
    if (pixels(s) > 1) Separable<T>(isa, s, out, 0, (act + 1) % 7, true, true, true).run();
  }
  dense<T>(isa);
  pools<T>(isa);
  depthwise_norms<T>(isa);
  bottlenecks<T>(isa);
  attention<T>(isa);
  cbams<T>(isa);
  coordinates<T>(isa);
  gates<T>(isa);
  losses<T>(isa);
  linked<T>(isa);
  for (bool direct : {false, true}) streamed<T>(isa, direct);
}

}  // namespace

// All kernels of one instruction set.
static void instruction_set(Isa isa) {
  const std::string name = isa_name(isa);
  if (!isa_supported(isa)) {
    std::printf("%s: not on this CPU\n", isa_name(isa));
    return;
  }
  check(set_isa(isa_name(isa)) && active_isa() == isa, "set_isa " + name);
  if (isa_has_ops(isa)) {
    all<float>(name + " f32");
    all<double>(name + " f64");
    resized_pictures(isa);
  }
  engine_kernels(isa);
  engine_low(isa);
  engine_plans(isa);
  engine_planes(isa);
  check(random_networks(isa, 1, 100) == 0, name + " engine: random networks");
  int count = 0;
  const KernelInfo* table = kernel_table(&count);
  for (int k = 0; k < count && isa_has_ops(isa); ++k)
    check(table[k].calls[static_cast<int>(isa)] > 0, std::string(table[k].name) + " never ran on " + name);
  std::printf("%s: done\n", isa_name(isa));
}

// What no instruction set changes.
static void common() {
  steps<float, uint32_t>();
  steps<double, uint64_t>();
  step_counters();
  engine_threads();
  engine_low();
  tiles();
  check(!set_isa("sse9") && set_isa("auto"), "set_isa of an unknown name");
  std::printf("common: done\n");
}

// Everything, or the parts named; --parts names them all, to run them side by side.
int main(int count, char** arguments) {
  std::vector<std::string> parts;
  for (int i = static_cast<int>(Isa::count); i-- > 0;) parts.push_back(isa_name(static_cast<Isa>(i)));
  parts.push_back("common");
  if (count == 2 && arguments[1] == std::string("--parts")) {
    for (const std::string& part : parts) std::printf("%s\n", part.c_str());
    return 0;
  }
  const std::vector<std::string> asked = count > 1 ? std::vector<std::string>(arguments + 1, arguments + count) : parts;
  std::printf("threads by %s\n", openmp_runtime());
  for (const std::string& part : asked) {
    int i = 0;
    while (i < static_cast<int>(Isa::count) && part != isa_name(static_cast<Isa>(i))) ++i;
    if (part == "common") {
      common();
    } else if (i < static_cast<int>(Isa::count)) {
      instruction_set(static_cast<Isa>(i));
    } else {
      std::printf("selftest: expected --parts or some of what it prints, got %s\n", part.c_str());
      return 2;
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
