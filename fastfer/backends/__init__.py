# SPDX-License-Identifier: Apache-2.0
"""What runs the ops: one package a backend, in each one module a family, all with the same functions.

`fastfer.backend` is their door: it chooses per device, and nothing else imports a backend by name.
"""
