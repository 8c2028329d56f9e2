//! Readiness and metrics.

use connectrpc::{RequestContext, Response, ServiceRequest, ServiceResult};
use pinfold_agent_api::v1::{
    MetricsRequest, MetricsResponse, ReadyRequest, ReadyResponse, SystemService,
};

use super::Service;

impl SystemService for Service {
    async fn ready(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, ReadyRequest>,
    ) -> ServiceResult<ReadyResponse> {
        Response::ok(ReadyResponse {
            ready: true,
            version: crate::VERSION.to_owned(),
            ..ReadyResponse::default()
        })
    }

    async fn metrics(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, MetricsRequest>,
    ) -> ServiceResult<MetricsResponse> {
        let metrics = self.0.usage.metrics().await;
        Response::ok(MetricsResponse {
            uptime: metrics.uptime,
            uptime_seconds: metrics.uptime_seconds,
            cpu_percent: metrics.cpu_percent,
            memory_mb: metrics.memory_mb,
            memory_percent: metrics.memory_percent,
            disk_free_mb: metrics.disk_free_mb,
            disk_percent: metrics.disk_percent,
            timestamp: metrics.timestamp,
            memory_limit_mb: metrics.memory_limit_mb,
            ..MetricsResponse::default()
        })
    }
}
