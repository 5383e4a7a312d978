# SPDX-License-Identifier: Apache-2.0
"""Faces in whole pictures: a detector on the engine, and the square around a face that networks are shown.

Needs numpy and Pillow; torch and onnx once, where the detector's ONNX file is compiled.
"""
