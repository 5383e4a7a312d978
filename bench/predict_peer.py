# SPDX-License-Identifier: Apache-2.0
"""Another way from a photo to labels, in a Python of its own: ``python predict_peer.py KIND PICTURE [FILES...]``.

KIND "opencv": OpenCV's YuNet and the network in ONNX Runtime; FILES are the detector, the network, its input as JSON.
KIND "fer": the package fer as it comes. Prints what ran, then for each line that it reads the seconds of a photo: of
the wall and of the process. Needs nothing of fastfer.
"""

import json
import os
import sys
import time


def opencv(picture, detector, network, about):
    """OpenCV 4 takes the detector's file of 2023, OpenCV 5 does not."""
    import cv2
    import numpy as np
    import onnxruntime

    cv2.setNumThreads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    (side, mean, std, margin, longest), name = json.loads(about), session.get_inputs()[0].name
    yunet = cv2.FaceDetectorYN.create(detector, "", (320, 320), 0.7, 0.3)

    def run():
        bgr = cv2.imread(picture)
        scale = min(1.0, longest / max(bgr.shape[:2]))
        small = bgr if scale == 1 else cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yunet.setInputSize(small.shape[1::-1])
        rows = yunet.detect(small)[1]
        crops = []
        for left, top, width, height in [] if rows is None else rows[:, :4] / scale:
            half = max(width, height) * (0.5 + margin)
            x, y = left + width / 2, top + height / 2
            x0, y0, x1, y1 = (round(max(v, 0)) for v in (x - half, y - half, x + half, y + half))
            grey = cv2.cvtColor(bgr[y0:y1, x0:x1], cv2.COLOR_BGR2GRAY)
            crops.append(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA))
        if not crops:
            return []
        x = ((np.stack(crops)[:, None].astype(np.float32) / 255 - mean) / std).astype(np.float32)
        return session.run(None, {name: x})[0].argmax(1).tolist()

    return run, f"OpenCV {cv2.__version__}'s YuNet, ONNX Runtime {onnxruntime.__version__}"


def fer(picture):
    """Haar cascades and its network in TFLite."""
    import importlib.metadata

    import cv2
    from fer.fer import FER

    cv2.setNumThreads(1)
    found = FER()

    def run():
        return [max(face["emotions"], key=face["emotions"].get) for face in found.detect_emotions(cv2.imread(picture))]

    return run, f"fer {importlib.metadata.version('fer')}, Haar and TFLite"


def main():
    """Answer lines until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print
    run, what = {"opencv": opencv, "fer": fer}[sys.argv[1]](*sys.argv[2:])
    print(f"{what}: {len(run())} faces", file=out, flush=True)
    for _ in sys.stdin:
        wall, used = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - wall, time.process_time() - used, file=out, flush=True)


if __name__ == "__main__":
    main()
